"""The ledger: durable, pessimistic, and never fooled into spending more."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dp_accounting
import pytest
from alembic import command
from alembic.config import Config
from dp_accounting import pld
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from fedpact.client.datasets import Datasets
from fedpact.client.home import MIGRATIONS, ClientHome
from fedpact.client.ledger import AlreadyReservedError, Ledger
from fedpact.client.tables import ReservationRow, exclusive
from fedpact.common import accounting
from fedpact.common.database import open_database
from fedpact.common.errors import BudgetError, DataError, StorageError, UsageError
from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian
from support.site_factory import a_study, write_csv

DELTA = 1e-5
CAP = 100.0
STEP = SubsampledGaussian(1.0, 0.05, 1)
STUDY = a_study()
GENEROUS = a_study(privacy={"target_epsilon": 1000.0})


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_database(database_url, MIGRATIONS)
    yield opened
    opened.dispose()


@pytest.fixture
def ledger(engine: Engine, tmp_path: Path) -> Ledger:
    Datasets(engine).add("notes", write_csv(tmp_path / "notes.csv", 120))
    return Ledger(engine)


def reserve(ledger: Ledger, run: str, number: int, mechanism=STEP, **kwargs):
    how = {"dataset": "notes", "study": GENEROUS, "cap": CAP, **kwargs}
    dataset, study = how.pop("dataset"), how.pop("study")
    return ledger.reserve(dataset, study, run, number, mechanism, **how)


# What is spent


def test_nothing_is_spent_at_first(ledger):
    assert ledger.spent("notes", DELTA) == 0.0
    assert ledger.spent_by_run("notes", "r1", DELTA) == 0.0
    assert ledger.history("notes") == []


def test_a_reservation_counts_in_full_until_it_is_settled(ledger):
    reservation = reserve(ledger, "r1", 1, SubsampledGaussian(1.0, 0.05, 10))
    assert ledger.spent("notes", DELTA) == accounting.epsilon(
        [SubsampledGaussian(1.0, 0.05, 10)], DELTA
    )
    settled = ledger.settle(reservation, 4)
    assert settled.settled_steps == 4
    assert settled.settled_at is not None
    assert settled.settled_at.tzinfo is not None
    assert ledger.spent("notes", DELTA) == accounting.epsilon(
        [SubsampledGaussian(1.0, 0.05, 4)], DELTA
    )


def test_studies_and_runs_compose(ledger):
    reserve(ledger, "r1", 1)
    reserve(
        ledger, "r2", 1, SubsampledGaussian(2.0, 0.1, 3), study=a_study(study={"name": "x"})
    )
    assert ledger.spent("notes", DELTA) == accounting.epsilon(
        [STEP, SubsampledGaussian(2.0, 0.1, 3)], DELTA
    )
    assert ledger.spent_by_run("notes", "r1", DELTA) == accounting.epsilon([STEP], DELTA)


def test_other_data_sets_are_not_charged(ledger, engine, tmp_path):
    Datasets(engine).add("other", write_csv(tmp_path / "other.csv", 120, salt="x"))
    reserve(ledger, "r1", 1)
    assert ledger.spent("other", DELTA) == 0.0


def test_a_study_without_privacy_costs_everything(ledger):
    reserve(ledger, "r1", 1, None)
    assert ledger.spent("notes", DELTA) == math.inf
    assert ledger.history("notes")[0].mechanism is None
    with pytest.raises(BudgetError, match="inf"):
        reserve(ledger, "r2", 1)


def test_history_says_what_ran(ledger):
    reserve(ledger, "r1", 1)
    reserve(ledger, "r1", 2)
    history = ledger.history("notes")
    assert [(entry.run, entry.round, entry.mechanism) for entry in history] == [
        ("r1", 1, STEP),
        ("r1", 2, STEP),
    ]
    assert {entry.study_digest for entry in history} == {GENEROUS.digest}


def test_a_data_set_that_is_not_there(ledger):
    for ask in (
        lambda: reserve(ledger, "r1", 1, dataset="nots"),
        lambda: ledger.spent("nots", DELTA),
        lambda: ledger.spent_by_run("nots", "r1", DELTA),
        lambda: ledger.history("nots"),
    ):
        with pytest.raises(DataError, match="no data set nots"):
            ask()


# One content, one budget


def test_the_same_content_under_another_name_shares_the_budget(ledger, engine, tmp_path):
    reserve(ledger, "r1", 1)
    _, warnings = Datasets(engine).add("again", write_csv(tmp_path / "again.csv", 120))
    assert "notes" in warnings[0]
    assert ledger.spent("again", DELTA) == ledger.spent("notes", DELTA) > 0
    reserve(ledger, "r2", 1, dataset="again")
    assert ledger.spent("notes", DELTA) == accounting.epsilon([STEP, STEP], DELTA)


def test_new_content_under_the_same_name_keeps_what_was_spent(ledger, engine, tmp_path):
    reserve(ledger, "r1", 1)
    Datasets(engine).add("notes", write_csv(tmp_path / "notes.csv", 130))
    assert ledger.spent("notes", DELTA) == accounting.epsilon([STEP], DELTA)


def test_content_that_moved_on_under_two_names_still_shares(ledger, engine, tmp_path):
    datasets = Datasets(engine)
    reserve(ledger, "r1", 1)
    datasets.add("notes", write_csv(tmp_path / "notes.csv", 130))
    datasets.add("old", write_csv(tmp_path / "old.csv", 120))  # what `notes` was when it spent
    datasets.add("new", write_csv(tmp_path / "new.csv", 130))  # what `notes` is now
    assert ledger.spent("old", DELTA) == ledger.spent("new", DELTA) > 0


# One population, one budget


def test_the_same_people_under_another_name_and_content_share_the_budget(
    ledger, engine, tmp_path
):
    reserve(ledger, "r1", 1)
    datasets = Datasets(engine)
    newer = write_csv(tmp_path / "newer.csv", 200, salt="x")
    dataset, warnings = datasets.add("newer", newer, population="notes")
    assert dataset.population == "notes"
    assert "same population as notes" in warnings[0]
    assert ledger.spent("newer", DELTA) == ledger.spent("notes", DELTA) > 0
    with pytest.raises(BudgetError, match="the data set newer"):
        reserve(ledger, "r2", 1, dataset="newer", cap=ledger.spent("notes", DELTA))


def test_who_was_once_of_a_population_shares_its_budget_for_ever(ledger, engine, tmp_path):
    """Neither another population, nor other content, nor both get away from what was spent."""
    datasets = Datasets(engine)
    first = write_csv(tmp_path / "first.csv", 50, salt="x")
    datasets.add("first", first, population="cardiology")
    datasets.add(
        "second", write_csv(tmp_path / "second.csv", 50, salt="y"), population="cardiology"
    )
    reserve(ledger, "r1", 1, dataset="first")
    _, warnings = datasets.add("second", tmp_path / "second.csv", population="others")
    assert "Until now its population was cardiology" in warnings[0]
    datasets.add("second", write_csv(tmp_path / "second.csv", 60, salt="z"))
    assert datasets.get("second").population == "others"
    assert ledger.spent("second", DELTA) == ledger.spent("first", DELTA) > 0
    # What `second` was before is known too, though it never spent anything under that name.
    datasets.add("third", write_csv(tmp_path / "third.csv", 50, salt="y"))
    assert ledger.spent("third", DELTA) == ledger.spent("first", DELTA)
    assert ledger.spent("notes", DELTA) == 0.0


def test_a_data_set_that_is_known_keeps_its_population(ledger, engine, tmp_path):
    datasets = Datasets(engine)
    path = write_csv(tmp_path / "first.csv", 50, salt="x")
    assert datasets.get("notes").population == "notes"
    datasets.add("first", path, population="cardiology patients 2019-2024")
    assert datasets.add("first", path)[0].population == "cardiology patients 2019-2024"
    with pytest.raises(UsageError, match="population"):
        datasets.add("first", path, population="a\nb")


def test_a_ledger_from_before_populations_keeps_what_was_spent(database_url, tmp_path):
    (tmp_path / "database").mkdir(exist_ok=True)
    engine = create_engine(database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for sql in (
            "INSERT INTO datasets VALUES ('old', '/x', 'aa', 1, 'csv', '2026-01-01 00:00:00')",
            "INSERT INTO datasets VALUES ('new', '/y', 'bb', 1, 'csv', '2026-01-01 00:00:00')",
            (
                "INSERT INTO reservations (dataset, sha256, study_digest, study_name, run, round, "
                "noise_multiplier, sample_rate, steps, delta, reserved_at) VALUES ('old', 'bb', "
                "'00', 's', 'r1', 1, 1.0, 0.05, 1, 0.00001, '2026-01-01 00:00:00')"
            ),
        ):
            connection.exec_driver_sql(sql)
    engine.dispose()
    engine = open_database(database_url, MIGRATIONS)
    ledger, datasets = Ledger(engine), Datasets(engine)
    assert datasets.get("old").population == "old"
    assert ledger.spent("old", DELTA) == accounting.epsilon([STEP], DELTA)
    # `new` has the content that `old` had when it spent.
    assert ledger.spent("new", DELTA) == ledger.spent("old", DELTA)
    with pytest.raises(AlreadyReservedError):
        reserve(ledger, "r1", 1, dataset="old")
    engine.dispose()


# What metrics cost

RELEASE = GaussianRelease(20.0, 1)


def test_metrics_are_reserved_with_training_and_never_given_back(ledger):
    reservation = reserve(ledger, "r1", 1, metrics=RELEASE)
    both = accounting.epsilon([STEP, RELEASE], DELTA)
    assert reservation.metrics == RELEASE
    assert ledger.spent("notes", DELTA) == ledger.spent_by_run("notes", "r1", DELTA) == both
    assert ledger.history("notes") == [reservation]
    settled = ledger.settle(reservation, 0)
    assert settled.counted == (RELEASE,)
    assert ledger.history("notes") == [settled]
    assert ledger.spent("notes", DELTA) == accounting.epsilon([RELEASE], DELTA)
    with pytest.raises(AlreadyReservedError) as caught:
        reserve(ledger, "r1", 1)
    assert caught.value.reservation == settled


def test_metrics_count_against_every_limit(ledger):
    cap = accounting.epsilon([STEP], DELTA)
    for limits in (
        {"cap": cap},
        {"study_cap": cap},
        {"study": a_study(privacy={"target_epsilon": cap})},
    ):
        with pytest.raises(BudgetError, match="above its limit"):
            reserve(ledger, "r1", 1, metrics=RELEASE, **limits)
    assert ledger.history("notes") == []
    reserve(ledger, "r1", 1, cap=cap)


def test_a_kind_that_is_not_known_is_not_taken_for_nothing(ledger, engine):
    reservation = reserve(ledger, "r1", 1)
    with exclusive(engine, "reservations") as session:
        session.get(ReservationRow, reservation.id).kind = "laplace"
    with pytest.raises(StorageError, match="laplace"):
        ledger.spent("notes", DELTA)


# Refusals


def test_a_run_may_not_cost_more_than_its_study_promises(ledger):
    sigma = accounting.noise_multiplier(4.0, DELTA, 0.05, 3)
    step = SubsampledGaussian(sigma, 0.05, 1)
    for number in (1, 2, 3):
        ledger.settle(reserve(ledger, "r1", number, step, study=STUDY), 1)
    with pytest.raises(
        BudgetError, match=r"run r1 from ε = 3\.\d+ to 4\.\d+, above its limit of 4"
    ):
        reserve(ledger, "r1", 4, step, study=STUDY)
    assert ledger.spent_by_run("notes", "r1", DELTA) <= 4.0
    assert len(ledger.history("notes")) == 3


def test_each_run_has_the_budget_that_its_study_promises(ledger):
    study = a_study(privacy={"target_epsilon": accounting.epsilon([STEP], DELTA)})
    reserve(ledger, "r1", 1, study=study)
    reserve(ledger, "r2", 1, study=study)
    with pytest.raises(BudgetError, match="run r2"):
        reserve(ledger, "r2", 2, study=study)


def test_all_runs_of_a_study_may_not_cost_more_than_one_study_may(ledger):
    cap = accounting.epsilon([STEP, STEP], DELTA)
    reserve(ledger, "r1", 1, study_cap=cap)
    ledger.settle(reserve(ledger, "r2", 1, study_cap=cap), 1)
    with pytest.raises(BudgetError, match=r"the study .* above its limit"):
        reserve(ledger, "r3", 1, study_cap=cap)
    assert ledger.spent_by_study("notes", GENEROUS.digest, DELTA) == cap
    other = a_study(study={"name": "x"}, privacy={"target_epsilon": 1000.0})
    reserve(ledger, "r3", 1, study=other, study_cap=cap)
    reserve(ledger, "r4", 1)  # without a limit for one study


def test_a_data_set_may_not_cost_more_than_its_cap(ledger):
    cap = accounting.epsilon([STEP, STEP], DELTA)
    reserve(ledger, "r1", 1, cap=cap)
    reserve(ledger, "r2", 1, cap=cap)
    with pytest.raises(BudgetError, match="the data set notes"):
        reserve(ledger, "r3", 1, cap=cap)
    assert ledger.spent("notes", DELTA) == cap


def test_a_round_is_reserved_once(ledger):
    first = reserve(ledger, "r1", 1)
    with pytest.raises(AlreadyReservedError, match="Round 1 of run r1") as caught:
        reserve(ledger, "r1", 1)
    assert caught.value.reservation == first
    assert ledger.spent("notes", DELTA) == accounting.epsilon([STEP], DELTA)


def test_no_more_steps_are_settled_than_were_reserved(ledger):
    reservation = reserve(ledger, "r1", 1)
    with pytest.raises(BudgetError, match="took 2 steps, but 1"):
        ledger.settle(reservation, 2)
    with pytest.raises(BudgetError, match="took -1 steps"):
        ledger.settle(reservation, -1)
    assert ledger.history("notes")[0].settled_steps is None


def test_a_settlement_is_final(ledger):
    reservation = reserve(ledger, "r1", 1, SubsampledGaussian(1.0, 0.05, 3))
    settled = ledger.settle(reservation, 2)
    assert ledger.settle(reservation, 2) == settled
    for steps in (0, 3):
        with pytest.raises(BudgetError, match="cannot be settled again"):
            ledger.settle(reservation, steps)


# Accounting is right, whatever happens in between

MECHANISMS = st.sampled_from(
    [
        SubsampledGaussian(sigma, q, steps)
        for sigma, q in ((1.0, 0.05), (1.5, 0.1), (0.8, 0.01))
        for steps in (1, 2, 7)
    ]
)
EVENT = st.tuples(MECHANISMS, st.sampled_from(["settled", "short", "crashed"]))


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(EVENT, max_size=6), order=st.randoms(use_true_random=False))
def test_any_interleaving_is_counted_and_never_too_low(tmp_path, events, order):
    folder = tmp_path / uuid.uuid4().hex
    home = ClientHome(folder)
    Datasets(home.open_database()).add("notes", write_csv(folder / "notes.csv", 3))
    counted, ran, open_ones = [], [], []
    ledger = Ledger(home.open_database())
    for number, (mechanism, fate) in enumerate(events, start=1):
        reservation = reserve(ledger, "r1", number, mechanism)
        steps = {"settled": mechanism.steps, "short": mechanism.steps - 1, "crashed": 0}[fate]
        ran.append(SubsampledGaussian(mechanism.noise_multiplier, mechanism.sample_rate, steps))
        if fate == "crashed":
            counted.append(mechanism)
        else:
            counted.append(ran[-1])
            open_ones.append((reservation, steps))
    order.shuffle(open_ones)
    # Another engine: what counts is what is on disk.
    ledger = Ledger(home.open_database())
    for reservation, steps in open_ones:
        ledger.settle(reservation, steps)
    spent = ledger.spent("notes", DELTA)
    assert spent >= accounting.epsilon(ran, DELTA)
    assert spent == pytest.approx(accounting.epsilon(counted, DELTA), rel=1e-9)
    order.shuffle(counted)
    split = [
        SubsampledGaussian(m.noise_multiplier, m.sample_rate, 1)
        for m in counted
        for _ in range(m.steps)
    ]
    assert spent == pytest.approx(accounting.epsilon(split, DELTA), rel=1e-9)


def by_dp_accounting(mechanisms, interval: float) -> float:
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=interval,
    )
    for mechanism in mechanisms:
        gaussian = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
        if isinstance(mechanism, GaussianRelease):
            accountant.compose(gaussian, mechanism.count)
        else:
            sampled = dp_accounting.PoissonSampledDpEvent(mechanism.sample_rate, gaussian)
            accountant.compose(sampled, mechanism.steps)
    return accountant.get_epsilon(DELTA)


# Noise over sampling rate such that the ledger's interval is the coarsest: cheap, and the worst.
A_STEP = st.tuples(
    st.sampled_from([1.0, 1.5, 2.5]), st.sampled_from([0.05, 0.2]), st.integers(1, 12)
).map(lambda drawn: SubsampledGaussian(*drawn))
A_ROUND = st.tuples(
    st.sampled_from(["r1", "r2", "r3"]),
    A_STEP,
    st.none() | st.sampled_from([GaussianRelease(15.0, 1), GaussianRelease(40.0, 1)]),
    st.sampled_from(["settled", "short", "crashed"]),
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rounds=st.lists(A_ROUND, min_size=1, max_size=5))
def test_it_is_never_below_what_a_finer_accountant_says_and_hardly_above(tmp_path, rounds):
    """Whatever ran: steps of any noise, several studies, metrics. Thousands: histories.py."""
    folder = tmp_path / uuid.uuid4().hex
    engine = ClientHome(folder).open_database()
    Datasets(engine).add("notes", write_csv(folder / "notes.csv", 3))
    ledger, counted = Ledger(engine), []
    for number, (run, mechanism, metrics, fate) in enumerate(rounds, start=1):
        study = a_study(study={"name": run}, privacy={"target_epsilon": 1000.0})
        entry = reserve(ledger, run, number, mechanism, study=study, metrics=metrics)
        if fate != "crashed":
            entry = ledger.settle(entry, mechanism.steps if fate == "settled" else 0)
        counted += entry.counted
    engine.dispose()
    finer = by_dp_accounting(counted, 1e-3 / 4)
    assert finer <= ledger.spent("notes", DELTA) <= 1.01 * finer


def test_it_agrees_with_opacus(ledger):
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    mechanisms = [SubsampledGaussian(1.0, 0.05, 40), SubsampledGaussian(1.5, 0.1, 20)]
    for number, m in enumerate(mechanisms, start=1):
        ledger.settle(reserve(ledger, "r1", number, m), m.steps)
        accountant.history.append((m.noise_multiplier, m.sample_rate, m.steps))
    assert ledger.spent("notes", DELTA) == pytest.approx(
        accountant.get_epsilon(DELTA), rel=0.01
    )


# Storms, cuts and full disks


def _at_once(jobs: list[Callable[[], object]]) -> list[BaseException | None]:
    barrier = threading.Barrier(len(jobs))
    outcomes: list[BaseException | None] = [None] * len(jobs)

    def run(number: int) -> None:
        barrier.wait()
        try:
            jobs[number]()
        except BaseException as error:  # noqa: BLE001 - looked at by the caller
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_two_reservations_at_once_do_not_both_slip_under_the_cap(ledger):
    cap = accounting.epsilon([STEP, STEP], DELTA)
    outcomes = _at_once([lambda n=n: reserve(ledger, f"r{n}", 1, cap=cap) for n in range(8)])
    assert outcomes.count(None) == 2
    assert all(type(error) in {BudgetError, type(None)} for error in outcomes)
    assert ledger.spent("notes", DELTA) <= cap


def test_the_same_round_at_once_is_reserved_once(ledger):
    outcomes = _at_once([lambda: reserve(ledger, "r1", 1) for _ in range(6)])
    assert outcomes.count(None) == 1
    assert sum(isinstance(error, AlreadyReservedError) for error in outcomes) == 5


_KILLED = """
import sys, time
from pathlib import Path
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.study import Study

ledger = Ledger(ClientHome(Path(sys.argv[1])).open_database())
study = Study.from_canonical(sys.argv[2])
ledger.reserve("notes", study, "r1", 1, SubsampledGaussian(1.0, 0.05, 5), cap=100.0)
print("reserved", flush=True)
time.sleep(60)
"""


def test_a_site_killed_between_reserving_and_settling_has_spent_it(tmp_path):
    home = ClientHome(tmp_path / "home")
    engine = home.open_database()
    Datasets(engine).add("notes", write_csv(tmp_path / "notes.csv", 3))
    engine.dispose()
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(home.folder), GENEROUS.canonical()],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"reserved\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()

    ledger = Ledger(home.open_database())
    mechanism = SubsampledGaussian(1.0, 0.05, 5)
    assert ledger.spent("notes", DELTA) == accounting.epsilon([mechanism], DELTA)
    with pytest.raises(AlreadyReservedError) as caught:
        reserve(ledger, "r1", 1, mechanism)
    assert caught.value.reservation.settled_at is None
    ledger.settle(caught.value.reservation, 5)


@pytest.fixture
def on_sqlite(tmp_path: Path) -> tuple[Engine, Path]:
    home = ClientHome(tmp_path / "home")
    engine = home.open_database()
    Datasets(engine).add("notes", write_csv(tmp_path / "notes.csv", 120))
    return engine, home.folder / "fedpact.db"


def test_a_full_disk_is_said_and_nothing_is_reserved(on_sqlite):
    engine, path = on_sqlite
    with sqlite3.connect(path) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    ledger = Ledger(engine)

    def until_it_fails() -> None:
        for number in range(1, 1000):
            reserve(ledger, "r1", number)

    with pytest.raises(StorageError, match="full"):
        until_it_fails()
    reserved = len(ledger.history("notes"))
    assert ledger.spent("notes", DELTA) == accounting.epsilon([STEP] * reserved, DELTA)


def test_a_database_that_cannot_be_written_is_said(on_sqlite):
    engine, _ = on_sqlite
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(StorageError, match="readonly"):
        reserve(Ledger(engine), "r1", 1)


def test_a_database_that_is_damaged_is_said(tmp_path):
    home = ClientHome(tmp_path / "home")
    home.create()
    (home.folder / "fedpact.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError):
        home.open_database()
