"""Starting and stopping the coordinator's processes, and what happens when one is killed."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from fedpact.client.home import ClientHome
from fedpact.client.join import join
from fedpact.common import certificates
from fedpact.common.errors import AddressError, RunError, TrustError, UsageError
from fedpact.server import home as homes
from fedpact.server import institutions
from fedpact.server.control import Control
from fedpact.server.fab import bundle
from fedpact.server.home import ServerHome
from fedpact.server.superlink import _descendants
from fedpact.server.tables import transaction
from fedpact.server.up import up
from support.coordinator import SERVER, make_home, serving
from support.processes import is_alive, running, wait_for

SLEEPER = {
    "pyproject.toml": """
[project]
name = "sleeper"
version = "1"
description = "A run that does nothing for a long time"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "sleeper.app:app"
clientapp = "sleeper.app:client"
[tool.flwr.app.config]
path = ""
""",
    "sleeper/__init__.py": "",
    "sleeper/app.py": """
import time
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from fedpact.server.superlink import end_with_parent

end_with_parent()
app, client = ServerApp(), ClientApp()


@app.main()
def main(grid, context):
    Path(context.run_config["path"]).touch()
    time.sleep(600)
""",
}


@pytest.fixture
def home(tmp_path) -> ServerHome:
    return make_home(tmp_path / "server")


def test_a_port_in_use_is_said_in_a_sentence(home):
    taken = socket.create_server(("127.0.0.1", home.settings().port))
    with taken, pytest.raises(AddressError) as raised:
        up(home)
    assert raised.value.message == (
        f"The coordinator cannot listen on 127.0.0.1:{home.settings().port}: "
        "Address already in use."
    )


def test_a_port_of_the_control_plane_in_use_is_said_in_a_sentence(home):
    port = home.settings().service_port
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(
            AddressError, match=f"cannot listen on 127.0.0.1:{port}: Address already"
        ),
    ):
        up(home)


def test_an_expired_certificate_that_cannot_be_renewed_is_said_before_anything_starts(home):
    homes.renew(home, "localhost", days=-1)
    home.ca_key.unlink()
    with pytest.raises(TrustError, match="The server's certificate expired on"):
        up(home)
    assert not home.superlink_database.exists()


def test_an_address_that_is_not_this_machines_is_said(tmp_path):
    home = homes.init(tmp_path / "server", "a.example", 9443, listen="192.0.2.1")
    with pytest.raises(AddressError, match=r"cannot listen on 192\.0\.2\.1:9443"):
        up(home)


@pytest.mark.e2e
def test_a_superlink_that_does_not_start_is_quoted(home):
    home.superlink_database.mkdir()
    with pytest.raises(AddressError, match=r"SuperLink ended at once: .*superlink\.log"):
        up(home)


def _family(pid: int) -> dict[str, int]:
    """What runs below a process, by the name of its script."""
    family = {}
    for child in _descendants(pid):
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        names = [Path(word).name for word in words[:3] if Path(word).name.startswith("fl")]
        family[names[0] if names else ""] = child
    return family


def _start_sleeper(control: Control, home: ServerHome) -> int:
    asleep = home.folder / "asleep"
    run = control.start_run(bundle(SLEEPER), {"path": str(asleep)})
    wait_for(asleep.exists, "the run has begun")
    return run


@pytest.mark.e2e
def test_whatever_kills_the_coordinator_leaves_nothing_behind(home):
    with serving(home) as coordinator:
        with coordinator.control() as control:
            _start_sleeper(control, home)
        family = _family(coordinator.process.pid)
        assert {"flower-superlink", "flower-superexec", "flwr-serverapp"} <= set(family)
        coordinator.process.send_signal(signal.SIGKILL)
        coordinator.process.wait()
        try:
            for name, pid in family.items():
                wait_for(lambda pid=pid: not is_alive(pid), f"{name} has ended", within=15)
        finally:
            for pid in filter(is_alive, family.values()):
                os.kill(pid, signal.SIGKILL)
    assert home.serving() is None
    with serving(home) as coordinator:
        assert coordinator.control()


@pytest.mark.e2e
def test_sigterm_stops_everything_in_order_and_runs_are_told(home):
    with serving(home) as coordinator:
        with coordinator.control() as control:
            run = _start_sleeper(control, home)
        family = _family(coordinator.process.pid)
        since = time.monotonic()
        coordinator.process.terminate()
        assert coordinator.process.wait(30) == 0
        assert time.monotonic() - since < 10
        assert not [name for name, pid in family.items() if is_alive(pid)]
    assert not home.serving_file.exists()
    with serving(home) as coordinator, coordinator.control() as control:
        status = control.run_status(run)
        assert (status.status, status.sub_status) == ("finished", "failed")


@pytest.mark.e2e
def test_superlink_is_started_again_and_sites_are_told_to_wait(home, tmp_path):
    with serving(home) as coordinator:
        before = home.serving()
        os.kill(before.superlink_pid, signal.SIGKILL)
        home_of_a_site = ClientHome(tmp_path / "a")
        token = coordinator.invite("A")
        with pytest.raises(AddressError, match="not ready"):
            join(token, home_of_a_site)
        wait_for(lambda: home.serving().superlink_pid != before.superlink_pid, "it is back")
        site = join(token, home_of_a_site)
        with coordinator.control() as control:
            assert [node.node_id for node in control.nodes()] == [int(site.node_id)]
        assert "SuperLink ended" in coordinator.log.read_text()
        assert "SuperLink is up again" in coordinator.log.read_text()


@pytest.mark.e2e
def test_superlink_forgets_everything_and_sites_are_registered_again(home, tmp_path):
    with serving(home) as coordinator:
        site = coordinator.joined("A", tmp_path / "a")
    for path in home.folder.glob("superlink.db*"):
        path.unlink()
    with serving(home) as coordinator, coordinator.control() as control:
        keys = [node.public_key for node in control.nodes()]
    assert keys == [certificates.public_pem(site.keys[1])]


@pytest.mark.e2e
def test_a_site_that_was_shut_out_while_nobody_served_is_unregistered(home, tmp_path):
    with serving(home) as coordinator:
        gone, stays = (coordinator.joined(name, tmp_path / name) for name in "AB")
    engine = home.open_database()
    with transaction(engine) as session:
        institutions.revoke(session, "A")
    with serving(home) as coordinator, coordinator.control() as control:
        registered = {node.node_id: node.is_registered for node in control.nodes()}
    assert registered == {gone.node_id: False, stays.node_id: True}


@pytest.mark.e2e
def test_a_certificate_that_is_about_to_end_is_renewed_and_shown_without_a_restart(home):
    homes.renew(home, "localhost", days=1)
    with serving(home) as coordinator:
        ports = (home.settings().port, home.settings().service_port)
        first = {_shown(home, port) for port in ports}
        assert first == {certificates.load_certificate(home.server_certificate)}
        homes.renew(home, "localhost", days=1)
        short = certificates.load_certificate(home.server_certificate)
        wait_for(lambda: {_shown(home, port) for port in ports}.isdisjoint({*first, short}), "")
        shown = {_shown(home, port) for port in ports}
        assert shown == {certificates.load_certificate(home.server_certificate)}
        assert coordinator.process.poll() is None


def _shown(home: ServerHome, port: int) -> x509.Certificate:
    """The certificate that a port of the coordinator shows."""
    context = ssl.create_default_context(cafile=home.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("localhost", port)) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True))


@pytest.mark.e2e
def test_one_process_a_folder(home):
    with serving(home) as coordinator, pytest.raises(UsageError) as raised:
        up(home)
    assert f"already (process {coordinator.process.pid})" in raised.value.message


@pytest.mark.e2e
def test_runs_are_stopped_and_unknown_ones_refused(home):
    with serving(home) as coordinator, coordinator.control() as control:
        run = _start_sleeper(control, home)
        assert control.run_status(run).status == "running"
        control.stop_run(run)
        wait_for(lambda: control.run_status(run).is_finished, "the run has stopped")
        assert control.run_status(run).sub_status == "stopped"
        with pytest.raises(RunError, match="refuses stop-run"):
            control.stop_run(run)
        with pytest.raises(RunError, match="refuses list-runs"):
            control.run_status(1)
        with pytest.raises(RunError, match="refuses start-run"):
            control.start_run(bundle(SLEEPER), {"unknown-key": 1})


@pytest.mark.e2e
def test_stopped_while_it_starts_it_stops(home):
    log = home.folder / "out"
    with running(
        [sys.executable, "-c", SERVER, "up", "--home", str(home.folder)], log
    ) as process:
        wait_for((home.log / "superlink.log").exists, "SuperLink is being started")
        process.terminate()
        assert process.wait(30) == 0


def test_nobody_is_up_in_a_new_folder(home):
    with pytest.raises(AddressError, match="No coordinator is up"):
        Control.of(home)


def test_a_superlink_that_is_away_is_said(home):
    away = Control("127.0.0.1:1", home.ca)
    with away as control, pytest.raises(AddressError, match="does not answer"):
        control.nodes()


def test_the_command_line_starts_fast():
    code = "import time; t = time.process_time(); import fedpact.server.cli; print(time.process_time() - t)"
    seconds = float(subprocess.check_output([sys.executable, "-c", code]))
    assert seconds < 0.3
