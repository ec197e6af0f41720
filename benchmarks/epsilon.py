"""How far the ledger's ε is from Opacus' PRV accountant and from dp_accounting's own default.

Each row of the grid is reserved and settled in a real ledger, some whole and some in rounds;
what the ledger then says was spent is compared. The figure is the largest relative
difference over the grid. Neighbours: add or remove one record.

Opacus adds its tolerance to what it gives, 0.01 by default, which is much of a small ε; it
is asked for a tenth of that here.
"""

import tempfile
import time
import warnings
from pathlib import Path

from _report import arguments, report
from fedpact.client.datasets import Dataset, Datasets
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.common import accounting
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.study import Study

DELTA = 1e-5
GRID = [
    [SubsampledGaussian(sigma, q, steps)]
    for sigma, q, steps in (
        (0.6, 0.01, 100),
        (0.8, 0.01, 1000),
        (1.0, 0.02, 500),
        (1.0, 0.1, 100),
        (1.5, 0.1, 1000),
        (2.0, 0.2, 200),
        (4.0, 0.5, 100),
        (5.0, 0.02, 10_000),
        (40.0, 0.1, 1000),
        (15.0, 0.02, 100_000),
    )
] + [
    [SubsampledGaussian(0.8, 0.02, 100), SubsampledGaussian(1.2, 0.1, 50)],
    [SubsampledGaussian(1.0, 0.05, 60)] * 3 + [SubsampledGaussian(3.0, 0.3, 40)],
]
STUDY = Study.model_validate(
    {
        "study": {"name": "epsilon"},
        "task": {"labels": ["no", "yes"]},
        "model": {"base": "none"},
        "privacy": {"target_epsilon": 1e6, "target_delta": DELTA},
    }
)


def by_ledger(ledger: Ledger, dataset: Dataset, mechanisms: list[SubsampledGaussian]) -> float:
    for number, mechanism in enumerate(mechanisms, start=1):
        entry = ledger.reserve(dataset.name, STUDY, "run", number, mechanism, cap=1e6)
        ledger.settle(entry, mechanism.steps)
    return ledger.spent(dataset.name, DELTA)


def by_opacus(mechanisms: list[SubsampledGaussian]) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in mechanisms]
    return float(accountant.get_epsilon(DELTA, eps_error=1e-3))


def by_dp_accounting(mechanisms: list[SubsampledGaussian]) -> float:
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for m in mechanisms:
        gaussian = dp_accounting.GaussianDpEvent(m.noise_multiplier)
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(m.sample_rate, gaussian), m.steps
        )
    return float(accountant.get_epsilon(DELTA))


def main(form: str) -> None:
    parts: dict[str, float | int | str] = {}
    worst = {"opacus": 0.0, "dp_accounting": 0.0}
    slowest = 0.0
    for mechanisms in GRID:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "records.csv")
            file.write_text("text,label\na,no\n", encoding="utf-8")
            engine = ClientHome(Path(folder, "site")).open_database()
            dataset, _ = Datasets(engine).add("records", file)
            ours = by_ledger(Ledger(engine), dataset, mechanisms)
            engine.dispose()
        others = {
            "opacus": by_opacus(mechanisms),
            "dp_accounting": by_dp_accounting(mechanisms),
        }
        for name, value in others.items():
            worst[name] = max(worst[name], abs(ours / value - 1))
        accounting._epsilon.cache_clear()  # noqa: SLF001 - to time it cold
        start = time.perf_counter()
        accounting.epsilon(mechanisms, DELTA)
        slowest = max(slowest, time.perf_counter() - start)
        row = " + ".join(
            f"noise={m.noise_multiplier} q={m.sample_rate} n={m.steps}" for m in mechanisms
        )
        parts[row] = (
            f"{ours:.5f} (opacus {others['opacus']:.5f}, {others['dp_accounting']:.5f})"
        )
    parts |= {f"largest_relative_difference_to_{name}": value for name, value in worst.items()}
    parts["slowest_composition_seconds"] = slowest
    report(
        title="ε of the ledger against Opacus PRV and dp_accounting, largest relative difference",
        figure=max(worst.values()),
        parts=parts,
        target="<= 0.01",
        form=form,
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="opacus")
    main(arguments(__doc__).format)
