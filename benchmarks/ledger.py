"""How long a ledger of 10,000 rounds over 50 studies takes to say what was spent.

Each study has its own noise and sampling rate and 200 rounds; every third releases private
metrics. Three answers are timed: the first of a fresh process, the first after one more round
of one study, and a refusal or reservation of the next round. Beside them stands the naive way:
composing the rows one after another with dp_accounting, timed over the first of them and
stretched to all, and what adding up the studies' ε would say.
"""

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from _report import arguments, report
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.client.tables import ReservationRow, exclusive
from fedpact.common import accounting
from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian
from fedpact.common.study import Study

DELTA = 1e-6
STUDIES, ROUNDS = 50, 200
NAIVE_ROWS = 100


def a_study(number: int) -> Study:
    return Study.model_validate(
        {
            "study": {"name": f"study {number}"},
            "task": {"labels": ["no", "yes"]},
            "model": {"base": "none"},
            "privacy": {"target_epsilon": 100.0, "target_delta": DELTA},
        }
    )


def mechanism(number: int) -> SubsampledGaussian:
    """Sampling from 1 to 10 %, with noise of which 200 steps cost about ε = 1 to 2."""
    rate = 0.01 + 0.09 * number / STUDIES
    return SubsampledGaussian(0.8 + 12 * rate, rate, 1)


def fill(engine: Engine, dataset: str, sha256: str) -> None:
    """The rows as `Ledger.reserve` writes them, without its checks between."""
    with exclusive(engine, "reservations") as session:
        for number in range(STUDIES):
            study, step = a_study(number), mechanism(number)
            row = {
                "dataset": dataset,
                "sha256": sha256,
                "study_digest": study.digest,
                "study_name": study.study.name,
                "run": f"r{number}",
                "delta": DELTA,
                "reserved_at": datetime.now(UTC),
                "settled_at": datetime.now(UTC),
                "settled_steps": 1,
                "steps": 1,
            }
            kinds = [("training", step.noise_multiplier, step.sample_rate)]
            kinds += [("metrics", 150.0 + number, 1.0)] if number % 3 == 0 else []
            session.add_all(
                ReservationRow(
                    **row, round=r, kind=kind, noise_multiplier=noise, sample_rate=rate
                )
                for r in range(1, ROUNDS + 1)
                for kind, noise, rate in kinds
            )


def timed(ledger: Ledger) -> tuple[float, float]:
    start = time.perf_counter()
    spent = ledger.spent("records", DELTA)
    return time.perf_counter() - start, spent


def naive() -> float:
    """Seconds to compose all rows one after another."""
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=5e-4
    )
    start = time.perf_counter()
    for row in range(NAIVE_ROWS):
        step = mechanism(row % STUDIES)
        gaussian = dp_accounting.GaussianDpEvent(step.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(step.sample_rate, gaussian))
    return (time.perf_counter() - start) / NAIVE_ROWS * STUDIES * ROUNDS


def main(form: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "records.csv")
        file.write_text("text,label\na,no\n", encoding="utf-8")
        engine = ClientHome(Path(folder, "site")).open_database()
        dataset, _ = Datasets(engine).add("records", file)
        fill(engine, dataset.name, dataset.sha256)
        ledger = Ledger(engine)
        cold, spent = timed(ledger)
        seconds = []
        for number in (0, STUDIES // 2, STUDIES - 1):
            metrics = GaussianRelease(150.0 + number, 1) if number % 3 == 0 else None
            start = time.perf_counter()
            ledger.reserve(
                "records",
                a_study(number),
                f"r{number}",
                ROUNDS + 1,
                mechanism(number),
                cap=100.0,
                study_cap=100.0,
                metrics=metrics,
            )
            seconds.append(time.perf_counter() - start)
        again, _ = timed(ledger)
        engine.dispose()
    alone = [
        accounting.epsilon(
            [SubsampledGaussian(m.noise_multiplier, m.sample_rate, ROUNDS)], DELTA
        )
        for m in map(mechanism, range(STUDIES))
    ]
    report(
        title="A ledger of 10,000 rounds over 50 studies: seconds for one more, after the first",
        figure=max(seconds),
        parts={
            "first_answer_seconds": cold,
            "one_more_round_seconds": max(seconds),
            "same_again_seconds": again,
            "naive_composition_seconds_estimated": naive(),
            "epsilon": spent,
            "epsilon_added_up": sum(alone),
        },
        target="< 1",
        form=form,
    )


if __name__ == "__main__":
    main(arguments(__doc__).format)
