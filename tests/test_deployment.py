"""The images, compose files and units: hardened, and naming only what the command line has."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml

from fedpact.simulations.cli import app

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("server", "client")
_SYSTEMD = shutil.which("systemd-analyze")
_HADOLINT = shutil.which("hadolint") or shutil.which(
    "hadolint", path=str(Path(sys.executable).parent)
)


def read(room: str, name: str) -> str:
    return (ROOT / room / name).read_text(encoding="utf-8")


def instructions(room: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, lines that go on joined, comments left out."""
    text = re.sub(r"^#.*\n", "", read(room, "Dockerfile"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(w[0], w[1]) for line in lines if (w := line.split(maxsplit=1))]


def of(room: str, kind: str) -> list[str]:
    return [rest for word, rest in instructions(room) if word == kind]


def require_command(words: list[str]) -> None:
    """`words` is a command that exists, with options that it has."""
    command: click.Command = typer.main.get_command(app)
    assert words[0] in {"fedpact", "/opt/fedpact/bin/fedpact"}, words
    rest = words[1:]
    while rest and isinstance(command, click.Group):
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    assert not isinstance(command, click.Group), words
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(rest) <= options, words


@pytest.mark.parametrize("room", ROOMS)
def test_an_image_has_a_pinned_base_and_no_root(room):
    kinds = [word for word, _ in instructions(room)]
    assert kinds[0] == "FROM"
    bases = [base.split()[0] for base in of(room, "FROM")]
    assert len(bases) == 2, "one stage builds, the other runs"
    assert set(bases) == {"python:3.11-slim-bookworm"}
    user = of(room, "USER")[-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    after = kinds[len(kinds) - kinds[::-1].index("USER") :]
    assert not {"RUN", "COPY", "ADD", "USER"} & set(after), "nothing is made after root left"
    assert "ADD" not in kinds
    assert not [line for line in of(room, "RUN") if "curl" in line or "wget" in line]
    assert "--constraint constraints.txt" in of(room, "RUN")[1]


@pytest.mark.parametrize("room", ROOMS)
def test_an_image_is_built_from_what_is_there_and_nothing_else(room):
    named = [w for line in of(room, "COPY") if "--from" not in line for w in line.split()[:-1]]
    assert len(named) == 8
    assert not [name for name in named if not (ROOT / name).exists()]
    ignore = read(room, "Dockerfile.dockerignore").splitlines()
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == set(named)


@pytest.mark.parametrize("room", ROOMS)
def test_every_command_of_an_image_exists(room):
    (entry,), (serve,) = of(room, "ENTRYPOINT"), of(room, "CMD")
    require_command([*json.loads(entry), *json.loads(serve)])
    (health,) = of(room, "HEALTHCHECK")
    require_command(json.loads(health.partition("CMD ")[2]))
    assert of(room, "STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.skipif(_HADOLINT is None, reason="hadolint is not installed")
@pytest.mark.parametrize("room", ROOMS)
def test_hadolint_has_nothing_to_say(room):
    done = subprocess.run(
        [_HADOLINT, str(ROOT / room / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("room", ROOMS)
def test_a_container_may_do_little(room):
    compose = yaml.safe_load(read(room, "compose.yaml"))
    (service,) = compose["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == of(room, "USER")[-1]
    assert service["init"] is True
    assert (ROOT / room / service["build"]["context"]).resolve() == ROOT
    assert service["build"]["dockerfile"] == f"{room}/Dockerfile"
    # All that the image writes lies in the one volume that is kept.
    (volume,) = of(room, "VOLUME")
    (state, *others) = service["volumes"]
    assert state == f"state:{volume}"
    assert all(other.endswith(":ro") for other in others)
    settings = dict(re.findall(r"(\w+)=(\S+)", of(room, "ENV")[0]))
    for name in ("HOME", "HF_HOME", f"FEDPACT_{room.upper()}_HOME"):
        assert settings[name].startswith(volume)


def test_only_the_coordinator_has_ports_and_only_the_public_two():
    server, client = (yaml.safe_load(read(room, "compose.yaml")) for room in ROOMS)
    ports = server["services"]["coordinator"]["ports"]
    assert [port.partition(":")[0] for port in ports] == of("server", "EXPOSE")[0].split()
    assert "ports" not in client["services"]["site"]
    assert of("client", "EXPOSE") == []


def unit(room: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in read(room, f"fedpact-{room}.service").splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_unit_may_do_little(room):
    settings = unit(room)
    require_command(settings["ExecStart"][0].split())
    for key, value in {
        "User": "fedpact",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "StateDirectory": "fedpact",
        "StateDirectoryMode": "0700",
        "Restart": "on-failure",
        "UMask": "0077",
    }.items():
        assert settings[key] == [value], key
    places = dict(line.split("=") for line in settings["Environment"])
    for name in ("HOME", "HF_HOME", f"FEDPACT_{room.upper()}_HOME"):
        assert places[name].startswith("/var/lib/fedpact")


@pytest.mark.skipif(_SYSTEMD is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("room", ROOMS)
def test_systemd_takes_a_unit_and_finds_little_exposed(room, tmp_path):
    # It looks whether the program is there; on this machine another one must do.
    text = read(room, f"fedpact-{room}.service").replace(
        "/opt/fedpact/bin/fedpact", "/bin/true"
    )
    path = tmp_path / f"fedpact-{room}.service"
    path.write_text(text, encoding="utf-8")
    # Of a distribution's own units it also says what it does not like.
    said = analyze("verify", "--man=no", str(path)).stderr
    assert not [line for line in said.splitlines() if path.name in line]
    done = analyze("security", "--offline=true", "--threshold=25", "--no-pager", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert _SYSTEMD is not None
    return subprocess.run(
        [_SYSTEMD, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
