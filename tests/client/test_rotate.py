"""Changing keys against a real control plane, whatever breaks off in between."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpact.client import rotate as rotating
from fedpact.client.cli import client_app
from fedpact.client.home import ClientHome
from fedpact.client.join import load_site
from fedpact.client.rotate import rotate
from fedpact.client.service import Service
from fedpact.common.certificates import public_pem
from fedpact.common.errors import AddressError, TrustError
from fedpact.common.identity import Role, public_bytes
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.server import institutions
from fedpact.server.tables import transaction
from support.control_plane import ControlPlane, control_plane, joined


@pytest.fixture
def plane(tmp_path) -> Iterator[ControlPlane]:
    with control_plane(tmp_path / "server") as running:
        yield running


@pytest.fixture
def home(plane, tmp_path) -> ClientHome:
    return joined(plane, ClientHome(tmp_path / "site"))


def whom(home: ClientHome) -> str:
    with Service.of(home) as service:
        return service.federation.Status(pb.StatusRequest()).institution


def test_keys_are_new_and_the_old_ones_are_refused(plane, home):
    before = load_site(home)
    after = rotate(home)
    assert whom(home) == "A"
    assert public_bytes(after.signing_key) != public_bytes(before.signing_key)
    assert plane.nodes.known == {after.node_id: public_pem(after.keys[1])}
    assert home.public_key.read_bytes() == public_pem(after.keys[1])
    with Service(before) as service, pytest.raises(TrustError, match="does not accept"):
        service.federation.Status(pb.StatusRequest())
    assert {path.name for path in home.folder.glob("*.next")} == set()
    for path in (home.private_key, home.signing_key, home.site):
        assert path.stat().st_mode & 0o777 == 0o600


def test_keys_may_be_changed_again(home):
    seen = {public_bytes(load_site(home).signing_key)}
    for _ in range(3):
        seen.add(public_bytes(rotate(home).signing_key))
    assert len(seen) == 4
    assert whom(home) == "A"


def test_an_auditor_has_no_node_and_changes_its_key(plane, tmp_path):
    home = joined(plane, ClientHome(tmp_path / "auditor"), Role.AUDITOR)
    before = load_site(home).signing_key
    assert public_bytes(rotate(home).signing_key) != public_bytes(before)
    assert not home.private_key.exists()
    assert whom(home) == "A"


class Crashed(BaseException):
    """The machine has lost its power."""


def _steps(home: ClientHome) -> int:
    """How many steps a rotation has: files written and removed, and the call."""
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        _count(patch, counted, stop_at=None)
        rotate(home)
    return len(counted)


def _count(patch: pytest.MonkeyPatch, counted: list, stop_at: int | None) -> None:
    """Count what a rotation does in order, and crash just before one of it."""

    def watched(name, works):
        def call(*arguments, **named):
            if len(counted) == stop_at:
                raise Crashed
            counted.append(name)
            return works(*arguments, **named)

        return call

    patch.setattr(rotating, "write_private", watched("write", rotating.write_private))
    patch.setattr(rotating, "_tell", watched("tell", rotating._tell))
    patch.setattr(Path, "unlink", watched("unlink", Path.unlink))


def test_a_rotation_that_broke_off_anywhere_is_finished_by_the_next(plane, home):
    steps = _steps(home)
    assert steps >= 8
    for step in range(steps):
        counted = []
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Crashed):
            _count(patch, counted, stop_at=step)
            rotate(home)
        site = rotate(home)
        assert whom(home) == "A", counted
        assert plane.nodes.known == {site.node_id: public_pem(site.keys[1])}, counted
        assert not list(home.folder.glob("*.next"))


def test_an_answer_that_was_lost_is_asked_for_again(plane, home, monkeypatch):
    tell = rotating._tell

    def lost(*arguments):
        tell(*arguments)
        raise AddressError("The connection broke.")

    monkeypatch.setattr(rotating, "_tell", lost)
    with pytest.raises(AddressError):
        rotate(home)
    with pytest.raises(TrustError, match="does not accept"):
        whom(home)
    monkeypatch.setattr(rotating, "_tell", tell)
    rotate(home)
    assert whom(home) == "A"
    assert len(plane.nodes.known) == 1


def test_while_the_coordinator_is_not_ready_nothing_changes(plane, home):
    before = load_site(home)
    plane.nodes.away = True
    with pytest.raises(AddressError, match="not ready"):
        rotate(home)
    assert whom(home) == "A"
    plane.nodes.away = False
    assert public_bytes(rotate(home).signing_key) != public_bytes(before.signing_key)


def test_whoever_was_shut_out_stays_out(plane, home):
    with transaction(plane.engine) as session:
        institutions.revoke(session, "A")
    plane.callers.forget()
    with pytest.raises(TrustError, match="does not accept our key"):
        rotate(home)


def test_on_the_command_line_it_says_that_a_daemon_goes_on(home):
    before = public_bytes(load_site(home).signing_key)
    done = CliRunner().invoke(client_app, ["rotate", "--home", str(home.folder)])
    assert done.exit_code == 0, done.output
    assert "A has new keys" in done.output
    assert public_bytes(load_site(home).signing_key) != before
