"""The coordinator's metrics and status, as Prometheus and people read them."""

import json
import os
import signal
import ssl
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy.orm import Session

from fedpact.client.dial import look
from fedpact.common.errors import AddressError
from fedpact.server import runs
from fedpact.server.metrics import ServerMetrics, State
from fedpact.server.round_needs import Answer
from fedpact.server.run_tables import RunRow
from support.coordinator import Coordinator, make_home, serving
from support.federation import fedpact
from support.processes import free_port, wait_for
from support.scraping import scrape
from support.site_factory import a_study, some_weights

PORT = free_port()


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path / "server")


def a_run(home, *, status: str) -> str:
    """A run of one round: one update, one site late."""
    engine = home.open_database()
    run = runs.create(engine, a_study(), home.folder)
    record = runs.RunRecord(engine, run, home.artifacts)
    record.round_started(1, {"A", "B", "C"})
    record.answered(1, "A", Answer("updated", bytes_in=1000))
    record.answered(1, "B", Answer("late", "too slow", bytes_in=0))
    record.round_ended(1, some_weights(), 2.0)
    record.round_started(2, {"A"})
    runs.set_status(engine, run, status)
    engine.dispose()
    return run


def test_what_the_database_knows_is_right_from_the_first_scrape(home):
    def away() -> list:
        raise AddressError("SuperLink does not answer.")

    a_run(home, status="completed")
    a_run(home, status="running")
    metrics = ServerMetrics()
    engine = home.open_database()
    metrics.show_state(State(home, engine, away))
    value = metrics.registry.get_sample_value
    assert value("fedpact_server_runs", {"status": "completed"}) == 1
    assert value("fedpact_server_runs", {"status": "running"}) == 1
    assert value("fedpact_server_rounds_total") == 2
    assert value("fedpact_server_updates_total", {"outcome": "updated"}) == 2
    assert value("fedpact_server_updates_total", {"outcome": "late"}) == 2
    assert value("fedpact_server_updates_total", {"outcome": "asked"}) is None
    assert value("fedpact_server_bytes_in_total") == 2000
    assert value("fedpact_server_institutions", {"state": "joined"}) == 0
    assert value("fedpact_server_certificate_days_left", {"certificate": "server"}) > 800
    assert value("fedpact_server_sites_online") is None, "not known is not none"
    engine.dispose()


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory) -> Iterator[Coordinator]:
    home = make_home(tmp_path_factory.mktemp("coordinator") / "server")
    with serving(home, {"FEDPACT_METRICS_PORT": str(PORT)}) as running:
        yield running


@pytest.mark.e2e
def test_a_coordinator_that_serves(coordinator, tmp_path):
    before = scrape(PORT)
    coordinator.joined("A", tmp_path / "a")
    context = ssl.create_default_context(cafile=coordinator.home.ca)
    with httpx.Client(verify=context, trust_env=False) as client:
        client.post(f"https://{coordinator.address}/v1/fleet/pull-messages")
        client.get(f"https://{coordinator.address}/v1/control/list-runs")
        client.get(f"https://{coordinator.address}/anything")
    found = scrape(PORT)
    assert found["fedpact_server_institutions", "joined"] == 1
    assert found["fedpact_server_sites_online",] == 0
    requests = "fedpact_server_gateway_requests_total"
    assert found[requests, "/v1/fleet/pull-messages", "403"] == 1
    # A route that is none of ours has no name here, or anyone could make up any number of them.
    others = found[requests, "other", "404"] - before.get((requests, "other", "404"), 0)
    assert others >= 2
    assert {key[1] for key in found if key[0] == requests} == {
        "/v1/fleet/pull-messages",
        "other",
    }


@pytest.mark.e2e
def test_a_restart_of_superlink_is_counted(coordinator):
    assert scrape(PORT)["fedpact_server_superlink_restarts_total",] == 0
    os.kill(coordinator.home.serving().superlink_pid, signal.SIGKILL)
    wait_for(
        lambda: scrape(PORT)["fedpact_server_superlink_restarts_total",] == 1, "it is counted"
    )


@pytest.mark.e2e
def test_status_says_who_is_there_and_what_runs(coordinator):
    place = ("--home", str(coordinator.home.folder))
    engine = coordinator.home.open_database()
    run = runs.create(engine, a_study(), coordinator.home.folder)
    runs.RunRecord(engine, run, coordinator.home.artifacts).round_started(1, {"A"})
    with Session(engine) as session, session.begin():
        session.get_one(RunRow, run).process = os.getpid()
    engine.dispose()
    done = fedpact("server", "status", "--check", *place, "--format", "json")
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert shown["institutions"].keys() == {"invited", "joined", "revoked", "online"}
    assert shown["run"] == {
        "run": run,
        "study": "triage",
        "status": "waiting",
        "round": 1,
        "rounds": 20,
    }
    assert "1/20" in fedpact("server", "status", *place).stdout


@pytest.mark.e2e
def test_the_gateway_says_its_time(coordinator):
    assert look(coordinator.address).clock is not None


def test_a_coordinator_that_is_down_fails_the_check(home):
    done = fedpact("server", "status", "--check", "--home", str(home.folder))
    assert done.returncode == AddressError.exit_code
    assert "fedpact server up" in done.stderr
    assert fedpact("server", "status", "--home", str(home.folder)).returncode == 0
