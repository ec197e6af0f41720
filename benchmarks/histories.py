"""How far the ledger's ε is from dp_accounting's, over random histories: never below, little above.

Each history is reserved and settled in a real ledger: one to three studies, each with its own
noise and sampling rate, rounds that ran whole, ran short or never ended, some with private
metrics. What the ledger then says was spent stands beside the PLD of the same steps by
dp_accounting itself, at a quarter of the ledger's interval: that is a sixteenth of what
discretisation adds. The figure is the largest that the ledger is above, relative to it.
Neighbours: add or remove one record.
"""

import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from _report import parser, report
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.common import accounting
from fedpact.common.mechanism import GaussianRelease, Mechanism, SubsampledGaussian
from fedpact.common.study import Study

DELTA = 1e-5
# Few enough that the reference's distributions can be kept; q/σ from 0.006 to 0.5.
STEPS = (
    (0.8, 0.02),
    (0.9, 0.05),
    (1.0, 0.02),
    (1.0, 0.1),
    (1.3, 0.05),
    (1.5, 0.1),
    (2.0, 0.05),
    (2.0, 1.0),
    (3.0, 0.2),
    (4.0, 0.5),
    (5.0, 0.1),
    (8.0, 0.05),
)
COUNTS = (1, 4, 10, 40)
RELEASES = (12.0, 30.0, 45.0, 200.0)


def a_study(number: int) -> Study:
    return Study.model_validate(
        {
            "study": {"name": f"study {number}"},
            "task": {"labels": ["no", "yes"]},
            "model": {"base": "none"},
            "privacy": {"target_epsilon": 1e6, "target_delta": DELTA},
        }
    )


def spend(ledger: Ledger, dataset: str, chance: random.Random) -> list[Mechanism]:
    """A random history in the ledger; what of it counts."""
    counts: list[Mechanism] = []
    for number in range(chance.randint(1, 3)):
        sigma, rate = chance.choice(STEPS)
        release = chance.choice((None, *RELEASES))
        metrics = None if release is None else GaussianRelease(release, 1)
        for round_number in range(1, chance.randint(1, 3) + 1):
            planned = SubsampledGaussian(sigma, rate, chance.choice(COUNTS))
            run = f"{dataset}.{number}"
            entry = ledger.reserve(
                dataset, a_study(number), run, round_number, planned, cap=1e6, metrics=metrics
            )
            if chance.random() < 0.7:
                ran = planned.steps if chance.random() < 0.7 else planned.steps // 2
                entry = ledger.settle(entry, ran)
            counts += [m for m in entry.counted if m is not None]
    return counts


@lru_cache(maxsize=400)
def one(sigma: float, rate: float, steps: int, interval: float) -> Any:
    """The PLD of equal steps, by dp_accounting alone."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    if steps > 1 and rate < 1:
        return one(sigma, rate, 1, interval).self_compose(steps)
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=sigma / math.sqrt(steps),
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def directly(mechanisms: Sequence[Mechanism], interval: float) -> float:
    steps: Counter[tuple[float, float]] = Counter()
    for m in mechanisms:
        match m:
            case SubsampledGaussian(sigma, rate, number):
                steps[sigma, rate] += number
            case GaussianRelease(sigma, number):
                steps[sigma, 1.0] += number
    parts = [one(sigma, rate, n, interval) for (sigma, rate), n in steps.items() if n]
    if not parts:
        return 0.0
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return float(total.get_epsilon_for_delta(DELTA))


def main(histories: int, seed: int, form: str) -> None:
    chance = random.Random(seed)  # noqa: S311 - histories, not noise
    below = above = slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        engine = ClientHome(Path(folder, "site")).open_database()
        datasets, ledger = Datasets(engine), Ledger(engine)
        for number in range(histories):
            file = Path(folder, f"{number}.csv")
            file.write_text(f"text,label\n{number},no\n", encoding="utf-8")
            datasets.add(f"{number}", file)
            mechanisms = spend(ledger, f"{number}", chance)
            start = time.perf_counter()
            ours = ledger.spent(f"{number}", DELTA)
            slowest = max(slowest, time.perf_counter() - start)
            merged = accounting._merge(mechanisms)  # noqa: SLF001 - what it composes
            if not merged:
                continue
            reference = directly(mechanisms, accounting._interval(merged) / 4)  # noqa: SLF001
            below = max(below, 1 - ours / reference)
            above = max(above, ours / reference - 1)
            largest = max(largest, ours)
            if sys.stderr.isatty() or (number + 1) % 100 == 0:
                print(f"{number + 1} of {histories}", file=sys.stderr, end="\r")
        engine.dispose()
    report(
        title="ε of the ledger over random histories, the most it is above dp_accounting's",
        figure=above,
        parts={
            "histories": histories,
            "seed": seed,
            "most_below_relative": below,
            "most_above_relative": above,
            "largest_epsilon": largest,
            "slowest_answer_seconds": slowest,
        },
        target="<= 0.01, and never below",
        form=form,
    )


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--histories", type=int, default=1000)
    command_line.add_argument("--seed", type=int, default=0)
    asked = command_line.parse_args()
    main(asked.histories, asked.seed, asked.format)
