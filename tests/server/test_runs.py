"""Runs in the database: what is written down is what is read."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, select

from fedpact.common.adapter import Weights
from fedpact.common.database import open_database
from fedpact.common.errors import RunError, StorageError
from fedpact.common.evaluation import Metrics
from fedpact.server import aggregation, run_tables, runs
from fedpact.server.aggregation import Standing
from fedpact.server.contributions import Contribution
from fedpact.server.diagnostics import Diagnosis
from fedpact.server.home import MIGRATIONS
from fedpact.server.round_needs import Answer, ClassCounts
from support.round_fakes import lora_weights, study_among

STUDY = study_among("Ärzte", "B")
COUNTS = ClassCounts((3.0, -0.5), (1.25, 2.0), 1.5)
UPDATED = Answer("updated", "", 1234, 0.25, 1.5, "d" * 64, 0.7, 0.6, COUNTS)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_database(database_url, MIGRATIONS)
    yield opened
    opened.dispose()


@pytest.fixture
def run(engine, tmp_path) -> str:
    return runs.create(engine, STUDY, tmp_path)


@pytest.fixture
def record(engine, run, tmp_path) -> runs.RunRecord:
    (tmp_path / "artifacts").mkdir()
    return runs.RunRecord(engine, run, tmp_path / "artifacts")


def test_migrations_make_the_tables_that_the_code_describes(engine):
    for table in run_tables.Base.metadata.tables.values():
        columns = {c["name"]: c["nullable"] for c in inspect(engine).get_columns(table.name)}
        assert columns == {c.name: c.nullable for c in table.columns}, table.name


def test_a_new_run_waits(engine, run, tmp_path):
    view = runs.view(engine, run)
    assert (view.id, view.status, view.message, view.rounds) == (run, "waiting", "", ())
    assert (view.flower_run, view.adapter) == ("", "")
    assert view.study == STUDY
    assert view.is_under_way
    assert abs(datetime.now(UTC) - view.created_at) < timedelta(minutes=1)
    assert runs.study_of(engine, run) == (STUDY, tmp_path.resolve())


def test_a_whole_run_comes_back_as_it_was_written_down(engine, run, record):
    runs.set_flower_run(engine, run, 2**64 - 1)
    runs.set_status(engine, run, "running")
    assert runs.view(engine, run).is_under_way
    record.round_started(1, {"B", "Ärzte"})
    assert runs.view(engine, run).rounds == (
        runs.RoundView(1, None, None, None, {"B": Answer("asked"), "Ärzte": Answer("asked")}),
    )
    record.answered(1, "Ärzte", UPDATED)
    late = Answer("late", "No reply in 60 s.")
    record.answered(1, "B", late)
    record.round_ended(1, lora_weights(), 2.5)
    record.round_started(2, {"B"})
    record.measured(1, Metrics(0.5, 0.75))
    runs.set_adapter(engine, run, Path("somewhere"))
    runs.set_status(engine, run, "completed")
    view = runs.view(engine, run)
    assert view.rounds == (
        runs.RoundView(1, 2.5, 0.5, 0.75, {"B": late, "Ärzte": UPDATED}),
        runs.RoundView(2, None, None, None, {"B": Answer("asked")}),
    )
    assert (view.status, view.is_under_way) == ("completed", False)
    assert (view.flower_run, view.adapter) == (str(2**64 - 1), "somewhere")


def test_a_round_keeps_its_adapter_named_by_its_digest(engine, run, record, tmp_path):
    weights = lora_weights(1.5)
    record.round_started(1, {"B"})
    record.round_ended(1, weights, 1.0)
    (path,) = (tmp_path / "artifacts").iterdir()
    assert path.name == f"{weights.digest}.safetensors"
    assert Weights.load(path).digest == weights.digest


def test_what_a_round_was_made_of_is_kept_so_that_it_can_be_made_again(record, tmp_path):
    before = lora_weights(0.25)
    trained = aggregation.trained_manifest(STUDY, before.manifest, 1).names
    changes = [lora_weights(value).select(trained) for value in (0.1, 0.7)]
    record.begun(before)
    record.round_started(1, {"A", "B"})
    total = aggregation.Round(STUDY, Standing(before), 1)
    for name, change, weight in zip("AB", changes, (3, 5), strict=True):
        record.admitted(1, name, change, weight)
        total.add(change, weight)
    after = total.result().adapter
    record.round_ended(1, after, 1.0)

    def kept(digest: str) -> Weights:
        return Weights.load(tmp_path / "artifacts" / f"{digest}.safetensors")

    again = aggregation.Round(STUDY, Standing(kept(before.digest)), 1)
    for change, weight in zip(changes, (3, 5), strict=True):
        again.add(kept(change.digest), weight)
    assert again.result().adapter.digest == after.digest
    assert kept(after.digest).digest == after.digest


def test_what_a_round_was_like_is_written_down_and_its_state_kept(
    engine, run, record, tmp_path
):
    state = Weights.from_tensors({"m:x": [1.0, 2.0]})
    record.round_started(1, {"B"})
    assert runs.view(engine, run).rounds[0].diagnosis == Diagnosis()
    record.round_ended(1, lora_weights(), 1.0, state, Diagnosis(0.25, None))
    assert runs.view(engine, run).rounds[0].diagnosis == Diagnosis(0.25, None)
    with engine.connect() as connection:
        (digest,) = connection.execute(select(run_tables.RoundRow.state_digest)).one()
    kept = Weights.load(tmp_path / "artifacts" / f"{digest}.safetensors")
    assert (kept.digest, kept.manifest) == (state.digest, state.manifest)


def test_what_updates_were_worth_comes_back(engine, run, record):
    record.round_started(1, {"B", "Ärzte"})
    record.measured(1, Metrics(0.5, 0.75))
    assert runs.view(engine, run).rounds[0].contributions == {}
    worth = {"B": Contribution(0.25, -0.5), "Ärzte": Contribution(-0.125, None)}
    record.measured(1, Metrics(0.5, 0.75), worth)
    assert runs.view(engine, run).rounds[0].contributions == worth


def test_a_round_whose_adapter_cannot_be_kept_does_not_count(engine, run, record, tmp_path):
    record.round_started(1, {"B"})
    (tmp_path / "artifacts").rmdir()
    with pytest.raises(StorageError):
        record.round_ended(1, lora_weights(), 1.0)
    assert runs.view(engine, run).rounds[0].seconds is None


def test_runs_do_not_mix(engine, run, record, tmp_path):
    other = runs.create(engine, STUDY, tmp_path)
    assert other != run
    record.round_started(1, {"B"})
    record.answered(1, "B", UPDATED)
    second = runs.RunRecord(engine, other, tmp_path / "artifacts")
    second.round_started(1, {"B"})
    assert runs.view(engine, other).rounds[0].answers == {"B": Answer("asked")}
    assert runs.view(engine, run).rounds[0].answers == {"B": UPDATED}
    record.measured(1, Metrics(0.5, 0.75))
    assert runs.view(engine, other).rounds[0].accuracy is None


def test_the_newest_run_comes_first(engine, tmp_path):
    assert runs.list_runs(engine) == []
    names = [runs.create(engine, STUDY, tmp_path) for _ in range(3)]
    assert [view.id for view in runs.list_runs(engine)] == names[::-1]


def test_a_stop_request_reaches_the_run(engine, run, record, tmp_path):
    other = runs.RunRecord(engine, runs.create(engine, STUDY, tmp_path), tmp_path)
    assert not record.should_stop()
    runs.request_stop(engine, run)
    assert record.should_stop()
    assert not other.should_stop()


@pytest.mark.parametrize("status", ["completed", "stopped", "failed", "interrupted"])
def test_a_run_that_has_ended_cannot_be_stopped(engine, run, status):
    runs.set_status(engine, run, status)
    with pytest.raises(RunError, match=f"has ended already: {status}"):
        runs.request_stop(engine, run)


def test_a_run_that_is_not_there_is_said(engine):
    for ask in (runs.view, runs.study_of, runs.request_stop):
        with pytest.raises(RunError, match="There is no run nowhere") as raised:
            ask(engine, "nowhere")
        assert "fedpact run list" in raised.value.advice


def test_runs_of_a_coordinator_that_was_killed_are_marked(engine, run, record, tmp_path):
    waiting = runs.create(engine, STUDY, tmp_path)
    ended = runs.create(engine, STUDY, tmp_path)
    runs.set_status(engine, ended, "completed", "well")
    runs.set_status(engine, run, "running")
    for number in (1, 2):
        record.round_started(number, {"B"})
    record.round_ended(1, lora_weights(), 1.0)
    marked = {view.id: view for view in runs.interrupt(engine)}
    assert set(marked) == {run, waiting}
    assert {view.status for view in marked.values()} == {"interrupted"}
    assert "after 1 rounds" in marked[run].message
    assert "after 0 rounds" in marked[waiting].message
    assert runs.view(engine, run) == marked[run]
    assert (runs.view(engine, ended).status, runs.view(engine, ended).message) == (
        "completed",
        "well",
    )
    assert runs.interrupt(engine) == []


def test_a_process_that_outlived_its_coordinator_does_not_bring_a_run_back(engine, run):
    """The kernel ends it, but it may still write down that it was ended."""
    runs.set_status(engine, run, "running")
    runs.interrupt(engine)
    for status in ("running", "failed", "completed"):
        runs.set_status(engine, run, status, "late")
    view = runs.view(engine, run)
    assert view.status == "interrupted"
    assert view.message != "late"


def test_a_database_that_cannot_be_written_is_said(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'fedpact.db'}", MIGRATIONS)
    run = runs.create(engine, STUDY, tmp_path)
    record = runs.RunRecord(engine, run, tmp_path)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    for write in (
        lambda: runs.create(engine, STUDY, tmp_path),
        lambda: runs.set_status(engine, run, "running"),
        lambda: runs.request_stop(engine, run),
        lambda: record.round_started(1, {"B"}),
        lambda: record.measured(1, Metrics(0.5, 0.75)),
        lambda: runs.interrupt(engine),
    ):
        with pytest.raises(StorageError, match="readonly"):
            write()
    engine.dispose()


def test_what_becomes_of_a_round_is_logged_as_lines_of_ours(tmp_path, caplog):
    engine = open_database(f"sqlite:///{tmp_path / 'fedpact.db'}", MIGRATIONS)
    run = runs.create(engine, STUDY, tmp_path)
    record = runs.RunRecord(engine, run, tmp_path)
    record.round_started(1, {"B"})
    with caplog.at_level("INFO"):
        record.answered(1, "B", Answer("refused", "no\n2026-01-01 INFO fedpact: all is well"))
    engine.dispose()
    (line,) = [
        found.getMessage() for found in caplog.records if "B refused" in found.getMessage()
    ]
    assert line == "round 1: B refused. no 2026-01-01 INFO fedpact: all is well"
