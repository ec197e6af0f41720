"""The ledger for people: what each run has cost each data set, and what is left."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedpact.client import policy as policies
from fedpact.client.datasets import Dataset, Datasets
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger, Reservation
from fedpact.client.policy import Policy


@dataclass(frozen=True)
class RunLine:
    """What one run has cost.

    Attributes:
        rounds: how many were reserved.
        steps: private steps that count, reserved or run.
        unsettled: rounds that count in full because they never ended.
        epsilon: ε at `delta`; infinite without DP.
    """

    study: str
    study_digest: str
    run: str
    rounds: int
    steps: int
    unsettled: int
    epsilon: float
    delta: float


@dataclass(frozen=True)
class Statement:
    """What one data set has spent, and all that share its budget.

    Attributes:
        population: whom its records are sampled from.
        epsilon: over all runs together, at `delta`.
        delta: the smallest of any run's, which is the strictest; the policy's if none ran.
        cap: ε that it may spend over its lifetime.
        unit: whom every ε protects: adding or removing one of these. A record, if none ran.
    """

    dataset: str
    population: str
    runs: tuple[RunLine, ...]
    epsilon: float
    delta: float
    cap: float
    unit: str

    @property
    def remaining(self) -> float:
        """ε that is left under the cap."""
        return max(0.0, self.cap - self.epsilon)


def statement(ledger: Ledger, dataset: Dataset, policy: Policy) -> Statement:
    """What a data set has spent, run by run, the oldest first.

    Raises:
        StorageError: the ledger cannot be read.
    """
    runs: dict[tuple[str, str], list[Reservation]] = {}
    entries = ledger.history(dataset.name)
    for entry in entries:
        runs.setdefault((entry.run, entry.study_digest), []).append(entry)
    lines = tuple(_line(ledger, dataset, of_run) for of_run in runs.values())
    unit = next((entry.unit for entry in entries if entry.mechanism), "record")
    delta = min((line.delta for line in lines), default=policy.max_delta)
    return Statement(
        dataset.name,
        dataset.population,
        lines,
        ledger.spent(dataset.name, delta),
        delta,
        policy.max_epsilon,
        unit,
    )


def statements(home: ClientHome) -> list[Statement]:
    """What every data set of a site has spent.

    Raises:
        PolicyError: the site's policy is not valid.
        StorageError: the ledger cannot be read.
    """
    engine = home.open_database()
    try:
        rules, ledger = policies.load(home.policy), Ledger(engine)
        return [statement(ledger, dataset, rules) for dataset in Datasets(engine).list()]
    finally:
        engine.dispose()


def as_json(statements: Sequence[Statement]) -> dict[str, object]:
    """For programs; an infinite ε is null."""
    return {
        "datasets": [
            {
                "name": statement.dataset,
                "unit": statement.unit,
                "neighbours": f"add or remove one {statement.unit}",
                "population": statement.population,
                "epsilon": _number(statement.epsilon),
                "delta": statement.delta,
                "cap": statement.cap,
                "remaining": statement.remaining,
                "runs": [
                    {**vars(line), "epsilon": _number(line.epsilon)} for line in statement.runs
                ],
            }
            for statement in statements
        ],
    }


def _line(ledger: Ledger, dataset: Dataset, entries: Sequence[Reservation]) -> RunLine:
    first, delta = entries[0], min(entry.delta for entry in entries)
    return RunLine(
        study=first.study_name,
        study_digest=first.study_digest,
        run=first.run,
        rounds=len(entries),
        steps=sum(entry.counted_steps for entry in entries),
        unsettled=sum(entry.settled_at is None for entry in entries),
        epsilon=ledger.spent_by_run(dataset.name, first.run, delta),
        delta=delta,
    )


def _number(epsilon: float) -> float | None:
    return None if math.isinf(epsilon) else epsilon
