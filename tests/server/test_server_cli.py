import json
import logging
import re
import shlex

import pytest
from typer.testing import CliRunner

from fedpact.common.cli import home_option
from fedpact.common.errors import FedpactError, UsageError
from fedpact.common.invitation import Invitation
from fedpact.server.cli import DEFAULT_HOME, server_app
from fedpact.server.run_cli import run_app


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPACT_SERVER_HOME", str(tmp_path / "server"))
    # Alembic's own configuration of logging must not leak into other tests.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(server_app, arguments, catch_exceptions=True)
        if isinstance(result.exception, FedpactError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def test_the_way_from_nothing_to_an_invitation(run):
    assert "fingerprint" in run("init", "--host", "fed.example.org", "--port", "9000")
    token = run("invite", "Universität Ärzte", "--sector", "academia", "--days", "3")
    invitation = Invitation.decode(token)
    assert (invitation.address, invitation.institution) == (
        "fed.example.org:9000",
        "Universität Ärzte",
    )
    status = json.loads(run("status", "--format", "json"))
    assert status["up"] is False
    assert status["ca_fingerprint"] == invitation.fingerprint
    rows = json.loads(run("institutions", "--format", "json"))
    assert [(r["name"], r["sector"], r["state"], r["online"]) for r in rows] == [
        ("Universität Ärzte", "academia", "invited", False)
    ]
    assert rows[0]["role"] == "data-holder"
    run("revoke", "Universität Ärzte")
    assert json.loads(run("institutions", "--format", "json"))[0]["state"] == "revoked"


def commands(output: str) -> list[list[str]]:
    """What stands between backquotes, as a shell reads it."""
    return [shlex.split(command) for command in re.findall(r"`(fedpact [^`]*)`", output)]


def test_next_steps_work_as_pasted(run, tmp_path, monkeypatch):
    folder = tmp_path / ("a [long] way/" * 10) / "it's here"
    up, invite = commands(run("init", "--home", str(folder)))
    assert up == ["fedpact", "server", "up", "--home", str(folder)]
    assert invite[-2:] == ["--home", str(folder)]
    (invite,) = commands(run("institutions", "--home", str(folder)))
    assert invite[-2:] == ["--home", str(folder)]

    monkeypatch.setattr("fedpact.server.starting.start_run", lambda *_: "r1")
    started = CliRunner().invoke(run_app, ["start", "study.toml", "--home", str(folder)])
    assert commands(started.stdout) == [
        ["fedpact", "run", "watch", "r1", "--home", str(folder)]
    ]
    assert home_option(DEFAULT_HOME, DEFAULT_HOME) == ""


def test_tables_are_for_people(run):
    run("init")
    assert "Nobody was invited yet" in run("institutions")
    run("invite", "A", "--sector", "industry")
    assert "industry" in run("institutions")
    assert "localhost:9443" in run("status")


def test_a_new_certificate_leaves_the_ca_as_it_is(run):
    run("init")
    before = json.loads(run("status", "--format", "json"))
    assert "by itself" in run("init", "--renew")
    after = json.loads(run("status", "--format", "json"))
    assert after["ca_fingerprint"] == before["ca_fingerprint"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["institutions"],
        ["invite", "A", "--sector", "industry"],
        ["up"],
        ["revoke", "A"],
    ],
)
def test_without_a_coordinator_every_verb_says_how_to_make_one(run, arguments):
    with pytest.raises(UsageError, match="`fedpact server init"):
        run(*arguments)


@pytest.mark.parametrize("role", ["data-holder", "researcher", "auditor"])
def test_a_token_says_as_what_one_is_invited(run, role):
    run("init", "--port", "9000", "--service-port", "9001")
    invitation = Invitation.decode(run("invite", "A", "--sector", "academia", "--role", role))
    assert (invitation.role, invitation.service) == (role, "localhost:9001")
    assert json.loads(run("institutions", "--format", "json"))[0]["role"] == role
