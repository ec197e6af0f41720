"""The only door: what may not leave stays, what leaves is written down, and once."""

import json
import stat
import threading
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedpact.client.datasets import Datasets
from fedpact.client.gate import Allowed, Gate
from fedpact.client.home import ClientHome
from fedpact.client.tables import DepartureRow, ReservationRow, reading
from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.errors import (
    BudgetError,
    PolicyError,
    StorageError,
    TrainingError,
    WireError,
)
from support.site_factory import some_weights, update_header, write_csv

CHANGE = some_weights()
EXPECTED = CHANGE.manifest
ALLOWED = Allowed(EXPECTED)
METRICS = wire.SiteMetrics(kind="raw", loss=0.5, accuracy=0.75)
BY_CLASS = wire.SiteMetrics(
    kind="private", loss=0.5, accuracy=0.75, right=(1.0, 2.0), wrong=(3.0, 4.0)
)


RUNS = ("r1", "r2", "a", "..", ".", "a.1", "-")


@pytest.fixture
def home(tmp_path):
    """A site whose ledger holds thirty rounds of some runs, trained and settled."""
    home = ClientHome(tmp_path / "home")
    engine = home.open_database()
    Datasets(engine).add("notes", write_csv(tmp_path / "notes.csv", 120))
    with Session(engine) as session, session.begin():
        session.add_all(reserved(run, number) for run in RUNS for number in range(1, 31))
    return home


def reserved(run: str, number: int, **fields: object) -> ReservationRow:
    values = {
        "dataset": "notes",
        "sha256": "0" * 64,
        "study_digest": "a" * 64,
        "study_name": "triage",
        "noise_multiplier": 2.0,
        "sample_rate": 0.05,
        "steps": 1,
        "delta": 1e-5,
        "reserved_at": datetime.now(UTC),
        "settled_at": datetime.now(UTC),
        "settled_steps": 1,
        "kind": "training",
        "unit": "record",
    }
    return ReservationRow(run=run, round=number, **{**values, **fields})


@pytest.fixture
def gate(home):
    return Gate(home.open_database(), home.outbox)


def departures(home) -> list[DepartureRow]:
    with reading(home.open_database()) as session:
        return list(session.scalars(select(DepartureRow).order_by(DepartureRow.id)))


def refusal(code: str, reason: str = "because") -> wire.Refusal:
    return wire.Refusal(run="r1", round=1, study_digest="a" * 64, code=code, reason=reason)


def test_what_leaves_is_what_was_checked_and_is_written_down(gate, home):
    header = update_header(CHANGE)
    packet = gate.release(header, CHANGE, Allowed(EXPECTED, CHANGE.norm))
    read, weights = wire.unpack(packet)
    assert read == header
    assert weights is not None
    np.testing.assert_array_equal(weights.flat, CHANGE.flat)

    (departure,) = departures(home)
    assert (departure.run, departure.round, departure.kind) == ("r1", 1, "update")
    assert departure.bytes == packet.size == gate.bytes_out("r1")
    assert len(departure.sha256) == 64
    assert departure.summary["epsilon"] == 0.5
    assert departure.summary["steps"] == 1
    assert departure.summary["tensors"] == 2
    assert "metrics" not in departure.summary


def not_finite() -> Weights:
    flat = CHANGE.flat.copy()
    flat[3] = np.nan
    return Weights(EXPECTED, flat)


@pytest.mark.parametrize(
    ("header", "change", "how"),
    [
        (update_header(not_finite()), not_finite(), {}),
        (update_header(CHANGE), CHANGE, {"norm": 0.99 * CHANGE.norm}),
        (update_header(CHANGE, metrics=METRICS), CHANGE, {}),
        (update_header(CHANGE, metrics=METRICS), CHANGE, {"metrics": "private"}),
        (update_header(CHANGE, metrics=BY_CLASS), CHANGE, {"metrics": "private"}),
        (update_header(CHANGE, metrics=BY_CLASS), CHANGE, {"metrics": "private", "classes": 3}),
        (update_header(CHANGE.select(["head.bias"])), CHANGE.select(["head.bias"]), {}),
        (update_header(CHANGE), CHANGE, {"tensors": EXPECTED.select(["head.bias"])}),
        (update_header(CHANGE), some_weights(seed=1), {}),
    ],
)
def test_what_is_not_right_stays(gate, home, header, change, how):
    with pytest.raises((TrainingError, PolicyError, WireError)):
        gate.release(header, change, replace(ALLOWED, **how))
    assert departures(home) == []
    assert gate.stored("r1", 1) is None
    assert not gate.has_left("r1", 1)
    assert list(home.outbox.iterdir()) == []


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        (update_header(CHANGE, run="never-reserved"), ALLOWED),
        (update_header(CHANGE, round=31), ALLOWED),
        (update_header(CHANGE, round=32), ALLOWED),
        (update_header(CHANGE, study_digest="b" * 64), ALLOWED),
        (
            update_header(CHANGE, metrics=METRICS.model_copy(update={"kind": "private"})),
            Allowed(EXPECTED, metrics="private"),
        ),
    ],
)
def test_what_the_ledger_does_not_hold_stays(gate, home, header, allowed):
    with Session(home.open_database()) as session, session.begin():
        session.add(reserved("r1", 32, settled_steps=None, settled_at=None))
    for leave in (gate.release, gate.hold):
        with pytest.raises(BudgetError) as refused:
            leave(header, CHANGE, allowed)
        assert refused.value.told == "Nothing is reserved for this update."
    assert departures(home) == []
    assert list(home.outbox.iterdir()) == []


@pytest.mark.parametrize("word", [None, "withhold"])
def test_without_a_word_nothing_that_is_held_leaves(gate, home, word):
    gate.hold(update_header(CHANGE), CHANGE, ALLOWED)
    if word:
        gate.held.decide("r1", 1, word)
    with pytest.raises(PolicyError):
        gate.let_go(gate.held.find("r1", 1))
    assert departures(home) == []


def test_metrics_leave_only_where_they_are_allowed(gate, home):
    gate.release(
        update_header(CHANGE, metrics=METRICS), CHANGE, Allowed(EXPECTED, metrics="raw")
    )
    left = departures(home)[0].summary["metrics"]
    assert (left["kind"], left["loss"], left["accuracy"]) == ("raw", 0.5, 0.75)


def test_a_round_that_is_asked_for_again_gets_the_same_bytes(gate, home):
    first = gate.release(update_header(CHANGE), CHANGE, ALLOWED)
    restarted = Gate(home.open_database(), home.outbox)
    assert restarted.stored("r1", 1) == first
    assert restarted.resend("r1", 1) == first
    assert restarted.resend("r1", 2) is None
    assert restarted.resend("r2", 1) is None
    assert [departure.kind for departure in departures(home)] == ["update", "update"]
    assert restarted.bytes_out("r1") == 2 * first.size
    assert restarted.bytes_out("r2") == 0


def test_no_second_update_leaves_for_a_round(gate, home):
    gate.release(update_header(CHANGE), CHANGE, ALLOWED)
    other = some_weights(seed=1)
    with pytest.raises(PolicyError, match="Another update has left for round 1 of run r1"):
        gate.release(update_header(other), other, ALLOWED)
    assert len(departures(home)) == 1


def test_of_two_updates_at_once_one_leaves(gate, home):
    barrier = threading.Barrier(4)
    refused = []

    def release(seed: int) -> None:
        change = some_weights(seed)
        barrier.wait()
        try:
            gate.release(update_header(change), change, ALLOWED)
        except PolicyError as error:
            refused.append(error)

    threads = [threading.Thread(target=release, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert len(departures(home)) == 1


def test_refusals_are_written_down_too(gate, home):
    packet = gate.refuse(refusal("budget", "No budget is left."))
    header, array = wire.unpack(packet)
    assert isinstance(header, wire.Refusal)
    assert (header.reason, array) == ("No budget is left.", None)
    (departure,) = departures(home)
    assert departure.kind == "refusal"
    assert departure.bytes == packet.size == gate.bytes_out("r1")
    assert not gate.has_left("r1", 1)
    assert gate.stored("r1", 1) is None


def test_a_refusal_that_has_another_reason_for_outside_leaves_with_that(gate, home):
    packet = gate.refuse(refusal("budget", "The others spent 3.2."), "No budget is left.")
    assert wire.unpack(packet)[0].reason == "No budget is left."
    assert "3.2" not in packet.header
    assert departures(home)[0].summary["reason"] == "The others spent 3.2."


@pytest.mark.parametrize("code", ["data", "training", "model"])
def test_a_refusal_tells_nothing_of_the_records(gate, home, code):
    secret = "Record 17 has the label 'HIV positive'."
    packet = gate.refuse(refusal(code, secret))
    assert "17" not in packet.header
    assert "HIV" not in packet.header
    assert departures(home)[0].summary["reason"] == secret


def test_that_training_failed_is_something_that_has_left(gate, home):
    gate.refuse(refusal("training"))
    assert gate.has_left("r1", 1)
    assert departures(home)[0].kind == "failure"
    assert gate.bytes_out("r1") > 0


def test_the_outbox_is_private_and_keeps_the_last_few(gate, home):
    for number in range(1, 31):
        gate.release(update_header(CHANGE, round=number), CHANGE, ALLOWED)
    kept = list(home.outbox.iterdir())
    assert len(kept) == 16
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    assert gate.stored("r1", 30) is not None
    assert gate.stored("r1", 1) is None
    assert gate.has_left("r1", 1)
    with pytest.raises(PolicyError):
        gate.release(update_header(some_weights(1)), some_weights(1), ALLOWED)


@pytest.mark.parametrize("run", ["..", ".", "a.1", "-"])
def test_a_runs_name_leads_nowhere_else(gate, home, run):
    gate.release(update_header(CHANGE, run=run), CHANGE, ALLOWED)
    assert gate.stored(run, 1) is not None
    assert len(list(home.outbox.iterdir())) == 1
    assert gate.stored("a", 1) is None


def test_a_damaged_packet_is_not_sent(gate, home):
    gate.release(update_header(CHANGE), CHANGE, ALLOWED)
    (path,) = home.outbox.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"\xff\n"):
        path.write_bytes(damaged)
        assert gate.resend("r1", 1) is None
    assert len(departures(home)) == 1


def test_what_cannot_be_written_down_does_not_leave(home, gate, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr("fedpact.client.gate.write_private", full)
    with pytest.raises(StorageError):
        gate.release(update_header(CHANGE), CHANGE, ALLOWED)
    assert departures(home) == []
    monkeypatch.undo()
    engine = home.open_database()
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(StorageError):
        Gate(engine, home.outbox).refuse(refusal("policy"))
    assert departures(home) == []


def test_a_summary_is_json_that_a_steward_can_read(gate, home):
    gate.release(update_header(CHANGE), CHANGE, ALLOWED)
    assert json.loads(json.dumps(departures(home)[0].summary)) == {
        "protocol": 1,
        "study_digest": "a" * 64,
        "epsilon": 0.5,
        "steps": 1,
        "tensors": 2,
    }
