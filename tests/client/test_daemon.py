"""What a site's daemon says of itself while it serves: its status, its metrics, its log."""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fedpact.client import statement
from fedpact.client.cli import client_app
from fedpact.client.daemon import Daemon, alone, read_status
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.metrics import ClientMetrics, MeteredWorkbench
from fedpact.client.up import build_site
from fedpact.common import logs, scrape, wire
from fedpact.common import model as models
from fedpact.common.errors import AddressError, UsageError
from support.coordinator import Coordinator, make_home, serving
from support.federation import Daemon as Process
from support.federation import fedpact
from support.processes import free_port, is_alive, wait_for
from support.scraping import scrape as scraped
from support.site_factory import INSTITUTION, update_request
from support.tiny_bert import some_rows, write_data


@pytest.fixture
def home(tmp_path) -> ClientHome:
    home = ClientHome(tmp_path / "home")
    engine = home.open_database()
    Datasets(engine).add("notes", write_data(tmp_path / "notes.csv"))
    engine.dispose()
    return home


def test_one_daemon_a_folder_and_its_status_goes_with_it(home):
    assert read_status(home) is None
    with alone(home):
        daemon = Daemon(home, ClientMetrics())
        assert read_status(home).connected_since is None
        daemon.connected()
        assert read_status(home).connected_since is not None
        daemon.lost()
        assert read_status(home).connected_since is None
        assert home.status.stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError, match="already"), alone(home):
            pass
    assert read_status(home) is None
    assert not home.status.exists()


def test_a_status_that_a_killed_daemon_left_is_not_believed(home):
    with alone(home):
        Daemon(home, ClientMetrics()).connected()
        left = home.status.read_bytes()
    home.status.write_bytes(left)
    assert read_status(home) is None


def test_a_disk_that_cannot_be_written_does_not_end_the_daemon(home, caplog):
    daemon = Daemon(home, ClientMetrics())
    home.status.unlink()
    home.status.mkdir()
    daemon.connected()
    assert "status.json cannot be written" in caplog.text


def test_two_rooms_can_be_in_one_process():
    first, second = ClientMetrics(), ClientMetrics()
    first.rounds.inc()
    assert second.registry.get_sample_value("fedpact_client_rounds_total") == 0


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[tuple[ClientMetrics, int]]:
    """Metrics that are served."""
    monkeypatch.delenv("FEDPACT_METRICS_HOST", raising=False)
    metrics, port = ClientMetrics(), free_port()
    with scrape.serving(metrics.registry, port):
        yield metrics, port


def test_answers_are_counted_shown_and_logged(home, tiny, endpoint, caplog):
    metrics, port = endpoint
    home.policy.write_text(f'models = ["{tiny.sha256}"]\n', encoding="utf-8")
    metrics.show_spending(lambda: statement.statements(home))
    site = build_site(home, INSTITUTION, MeteredWorkbench(metrics))
    site = replace(site, agreed=lambda _: None)
    study = tiny.study()
    weights = models.initial_weights(site.workbench.model(study).module, 0)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(json.loads(logs.JsonLines().format(record)))
    with alone(home), caplog.at_level("INFO"):
        logging.getLogger().addHandler(handler)
        try:
            answer = Daemon(home, metrics).watched(site.answer)
            update = answer(update_request(study, weights))
            refusal = answer(update_request(study, weights, round=99))
        finally:
            logging.getLogger().removeHandler(handler)
        status = read_status(home)
    assert (status.run, status.round, status.outcome) == ("r1", 99, "study")
    found = scraped(port)
    assert found["fedpact_client_answers_total", "update"] == 1
    assert found["fedpact_client_answers_total", "study"] == 1
    assert found["fedpact_client_bytes_out_total",] == update.size + refusal.size
    assert found["fedpact_client_rounds_total",] == 1
    assert found["fedpact_client_training_seconds_count",] == 1
    assert 0 < found["fedpact_client_epsilon_spent", "notes", "1e-05", "record"] < math.inf
    assert found["fedpact_client_epsilon_cap", "notes", "1e-05", "record"] == 10
    about = {"site": INSTITUTION, "study": study.digest, "run": "r1"}
    for message, number in (("run r1 round 1: training", 1), ("run r1 round 99: refused", 99)):
        (line,) = [line for line in lines if line["message"].startswith(message)]
        assert line.items() >= {**about, "round": number}.items()
    # No line repeats a record, however it is looked at.
    written = json.dumps(lines)
    assert not [text for text, _ in some_rows() if text in written]
    (left, refused) = json.loads(_client("departures", home, "--format", "json"))
    assert (left["kind"], left["bytes"]) == ("update", update.size)
    assert (refused["kind"], refused["reason"]) == (
        "refusal",
        wire.unpack(refusal)[0].reason,
    )
    (last,) = json.loads(_client("departures", home, "--format", "json", "--last", "1"))
    assert last == refused
    assert "update" in _client("departures", home)


def _client(verb: str, home: ClientHome, *more: str) -> str:
    result = CliRunner().invoke(client_app, [verb, "--home", str(home.folder), *more])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_was_spent_is_left_out_where_others_could_read_it(monkeypatch):
    assert scrape.stays_here()
    for host, stays in (("0.0.0.0", False), ("::1", True), ("127.0.0.9", True)):  # noqa: S104
        monkeypatch.setenv("FEDPACT_METRICS_HOST", host)
        assert scrape.stays_here() is stays


def test_a_port_in_use_is_said_in_a_sentence(endpoint):
    metrics, port = endpoint
    with (
        pytest.raises(AddressError, match=f"cannot be served on 127.0.0.1:{port}: Address"),
        scrape.serving(metrics.registry, port),
    ):
        pass


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory) -> Iterator[Coordinator]:
    with serving(make_home(tmp_path_factory.mktemp("coordinator") / "server")) as running:
        yield running


@pytest.mark.e2e
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_a_daemon_that_serves(coordinator, tmp_path, host):
    folder, port = tmp_path / "home", free_port()
    coordinator.joined(f"Site on {host}", folder)
    home, place = ClientHome(folder), ("--home", str(folder))
    engine = home.open_database()
    Datasets(engine).add("notes", write_data(tmp_path / "notes.csv"))
    engine.dispose()
    check = ("client", "status", "--check", *place)
    assert fedpact(*check).returncode == AddressError.exit_code
    env = {"FEDPACT_METRICS_HOST": host, "FEDPACT_LOG_FORMAT": "json"}
    up = ("client", "up", *place, "--metrics-port", str(port))
    daemon = Process(up, tmp_path / "log", env)
    try:
        daemon.wait_until_it_says("connected to")
        wait_for(lambda: read_status(home).connected_since, "it says that it is connected")
        assert fedpact(*check).returncode == 0
        shown = json.loads(fedpact("client", "status", *place, "--format", "json").stdout)
        assert (shown["up"], shown["run"]) == (True, None)
        assert [(d["name"], d["epsilon"]) for d in shown["datasets"]] == [("notes", 0.0)]
        found = scraped(port)
        assert found["fedpact_client_connected",] == 1
        assert found["fedpact_client_last_contact_timestamp_seconds",] > 0
        spent = ("fedpact_client_epsilon_spent", "notes", "0.0001", "record")
        assert (spent in found) == (host == "127.0.0.1")
        assert fedpact(*up).returncode == UsageError.exit_code
        lines = [json.loads(line) for line in daemon.said.splitlines()]
        assert {line["site"] for line in lines} == {f"Site on {host}"}
    finally:
        ended = daemon.stop()
    assert ended == 0
    assert not is_alive(daemon.process.pid)
    assert not home.status.exists()
    assert fedpact(*check).returncode == AddressError.exit_code
