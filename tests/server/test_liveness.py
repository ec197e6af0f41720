"""A run that is dead never merely looks slow."""

import os
import subprocess
import sys

import pytest
from sqlalchemy import update

from fedpact.common.database import open_database
from fedpact.server import liveness, runs
from fedpact.server.control import FlowerRun
from fedpact.server.home import MIGRATIONS, ServerHome
from fedpact.server.run_tables import RunRow
from fedpact.server.tables import transaction
from support.processes import wait_for
from support.round_fakes import study_among


@pytest.fixture
def engine(tmp_path):
    opened = open_database(f"sqlite:///{tmp_path / 'fedpact.db'}", MIGRATIONS)
    yield opened
    opened.dispose()


@pytest.fixture
def settled(engine, tmp_path):
    """A run that this process is said to be conducting; then what `settle` makes of it."""
    run = runs.create(engine, study_among("A"), tmp_path)

    def settle(process: int | None, status: str = "running", flower_run: str = "7"):
        with transaction(engine) as session:
            values = {"status": status, "process": process, "flower_run": flower_run}
            session.execute(update(RunRow).where(RunRow.id == run).values(**values))
        view = liveness.settle(ServerHome(tmp_path), engine, runs.view(engine, run))
        assert view == runs.view(engine, run)
        return view

    return settle


def test_a_run_whose_process_runs_is_left_alone(settled):
    assert settled(os.getpid()).status == "running"


def test_a_run_whose_process_is_gone_is_interrupted(settled):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    view = settled(process.pid)
    assert view.status == "interrupted"
    assert "without a word" in view.message


def test_a_process_that_was_killed_and_not_yet_reaped_is_gone_too(settled):
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        # Waited for without being reaped: it stays as a zombie.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wait_for(lambda: not liveness._is_alive(process.pid), "it counts as gone")
        assert settled(process.pid).status == "interrupted"
    finally:
        process.wait()


@pytest.mark.parametrize("status", ["completed", "stopped", "failed", "interrupted"])
def test_a_run_that_has_ended_stays_as_it_ended(settled, status):
    assert settled(None, status).status == status


class FakeControl:
    def __init__(self, status: FlowerRun) -> None:
        self._status = status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run_status(self, number: int) -> FlowerRun:
        assert number == 7
        return self._status


@pytest.mark.parametrize(
    ("flower", "status"),
    [
        (FlowerRun("pending", "", ""), "waiting"),
        (FlowerRun("running", "", ""), "waiting"),
        (FlowerRun("finished", "failed", "No module named torch"), "failed"),
    ],
)
def test_a_run_that_superlink_could_not_start_has_failed(settled, monkeypatch, flower, status):
    monkeypatch.setattr(liveness.Control, "of", lambda _home: FakeControl(flower))
    view = settled(None, "waiting")
    assert view.status == status
    assert flower.details in view.message


def test_while_the_coordinator_is_down_a_waiting_run_waits(settled):
    assert settled(None, "waiting").status == "waiting"
    assert settled(None, "waiting", flower_run="").status == "waiting"
