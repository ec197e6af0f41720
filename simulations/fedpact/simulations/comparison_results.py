"""What came of a comparison: `summary.json`, and each round of each cell in `rounds.parquet`.

Every ε stands with its δ, its unit and its neighbouring relation.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from fedpact.common.database import disk_errors
from fedpact.common.study import Study
from fedpact.server.results import CentralResult
from fedpact.simulations import held_out
from fedpact.simulations.cells import CellResult
from fedpact.simulations.comparison import Changes, Variant

NEIGHBOURS = "add or remove one"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Spread(_Part):
    """Values of several seeds."""

    mean: float
    """Their mean."""
    sd: float | None
    """Their standard deviation (n - 1); None of fewer than two."""
    n: int
    """How many there are."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), sd=sd, n=len(values))


class Try(_Part):
    """Values that a variant was tried with."""

    values: dict[str, Any]
    """Keys of the study, with their values."""
    score: float | None
    """After the last round, on the records held out, mean over seeds; None if a simulation failed."""
    loss: float | None
    """The same, of the loss."""
    reason: str
    """Why one failed; empty if none did."""

    @classmethod
    def of(cls, values: Changes, results: Sequence[CellResult]) -> Self:
        """What cells, one for each seed, say of some values."""
        return cls(
            values=dict(values),
            score=_mean_of_all([result.score for result in results]),
            loss=_mean_of_all([r.rounds[-1].loss if r.rounds else None for r in results]),
            reason=next((result.reason for result in results if result.reason), ""),
        )


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """None if there are none, or one is missing."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None


class Tuning(_Part):
    """How a variant's values were chosen. No ε pays for it."""

    seeds: tuple[int, ...]
    """The seeds of the tries; none of those that are reported."""
    held_out: float
    """The share of the training data that was held out for it and measured on: other records with each seed."""
    tries: tuple[Try, ...]
    """What was tried."""
    chosen: dict[str, Any] | None
    """The best of them by score, then by loss; None if all failed."""

    @classmethod
    def of(cls, seeds: tuple[int, ...], tries: Sequence[Try]) -> Self:
        """Choose."""
        scored = [
            (one.score, -(one.loss or 0.0), -n)
            for n, one in enumerate(tries)
            if one.score is not None
        ]
        best = max(scored, default=None)
        return cls(
            seeds=seeds,
            held_out=held_out.SHARE,
            tries=tuple(tries),
            chosen=None if best is None else tries[-best[2]].values,
        )


class Setting(_Part):
    """What all variants share."""

    data: str
    """The data file's name."""
    test_set: str
    """The name of the public test set that scores are of."""
    partition: str
    """How the data were dealt out."""
    seeds: tuple[int, ...]
    """Seeds of partition, sampling, noise and the adapter's first values."""


class Failure(_Part):
    """A cell that failed."""

    variant: str
    """Of which variant."""
    seed: int
    """With which seed."""
    reason: str
    """Why."""


class VariantResult(_Part):
    """One variant over all seeds that came to their end."""

    name: str
    """What it is called."""
    changes: dict[str, Any]
    """Keys of the study, with the values that they have here."""
    tuning: Tuning | None
    """How further values were chosen; None: nothing was tuned."""
    scores: dict[int, float]
    """The score after the last round, by seed."""
    score: Spread | None
    """The same; None if no seed came to its end."""
    gap: Spread | None
    """This score less the first variant's with the same seed; None of the first itself."""
    sites: int
    """How many sites there were."""
    bytes_in_per_site: float
    """What a site received in a run, on average."""
    bytes_out_per_site: float
    """What a site sent in a run, on average."""
    missing_updates: int
    """Updates that did not count (refusals, for instance), over all seeds."""
    seconds: float
    """A simulation's seconds from start to end, on average."""
    epsilon: float | None
    """What a run has cost at δ, the largest of all sites and seeds; None without DP."""
    delta: float
    """The δ at which ε is stated."""
    unit: str
    """Whom the ε is for."""
    neighbours: str
    """The neighbouring relation of ε, of one such unit."""
    central: CentralResult | None
    """What the coordinator's own noise promises to institutions; None where it does not clip."""


class ComparisonResult(_Part):
    """A comparison, from its first cell to its report."""

    study: str
    """The study's name."""
    study_digest: str
    """SHA-256 of the study without changes."""
    metric: str
    """What scores are; the higher, the better."""
    setting: Setting
    """What all variants share."""
    variants: tuple[VariantResult, ...]
    """In the order in which they were asked for."""
    failures: tuple[Failure, ...]
    """Cells that failed; the same command tries them again."""


def summarise(
    study: Study,
    variants: Sequence[Variant],
    results: Sequence[CellResult],
    tunings: Mapping[str, Tuning],
    setting: Setting,
    metric: str,
) -> ComparisonResult:
    """What cells come to, variant by variant."""
    cells = {v.name: [r for r in results if r.variant == v.name] for v in variants}
    first = _scores(cells[variants[0].name])
    failures = [
        Failure(variant=r.variant, seed=r.seed, reason=r.reason)
        for r in results
        if r.status == "failed"
    ]
    for name, tuning in tunings.items():
        if tuning.chosen is None:
            why = f"Nothing that was tried worked: {tuning.tries[0].reason}"
            failures.append(Failure(variant=name, seed=tuning.seeds[0], reason=why))
    return ComparisonResult(
        study=study.study.name,
        study_digest=study.digest,
        metric=metric,
        setting=setting,
        variants=tuple(
            _variant(
                study,
                variant,
                [r for r in cells[variant.name] if r.status == "completed"],
                tunings.get(variant.name),
                first if variant is not variants[0] else {},
            )
            for variant in variants
        ),
        failures=tuple(failures),
    )


def _variant(
    study: Study,
    variant: Variant,
    ended: Sequence[CellResult],
    tuning: Tuning | None,
    first: Mapping[int, float],
) -> VariantResult:
    scores = _scores(ended)
    gaps = [score - first[seed] for seed, score in scores.items() if seed in first]
    rounds = [r for cell in ended for r in cell.rounds]
    visits = sum(cell.sites for cell in ended) or 1
    last = ended[-1] if ended else None
    return VariantResult(
        name=variant.name,
        changes=dict(variant.changes),
        tuning=tuning,
        scores=scores,
        score=Spread.of(list(scores.values())) if scores else None,
        gap=Spread.of(gaps) if gaps else None,
        sites=last.sites if last else 0,
        bytes_in_per_site=sum(r.bytes_in for r in rounds) / visits,
        bytes_out_per_site=sum(r.bytes_out for r in rounds) / visits,
        missing_updates=sum(c.sites - r.updates for c in ended for r in c.rounds),
        seconds=statistics.fmean(c.seconds for c in ended) if ended else 0.0,
        epsilon=max((r.epsilon for r in rounds if r.epsilon is not None), default=None),
        delta=last.delta if last else study.privacy.target_delta,
        unit=last.unit if last else study.unit,
        neighbours=NEIGHBOURS,
        central=last.central if last else None,
    )


def _scores(cells: Sequence[CellResult]) -> dict[int, float]:
    return {cell.seed: cell.score for cell in cells if cell.score is not None}


def write_rounds(results: Sequence[CellResult], path: Path) -> None:
    """Write one row for each round of each cell that came to its end, as Parquet.

    Raises:
        StorageError: it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    rows = [
        {
            **cell_round.model_dump(),
            "variant": cell.variant,
            "seed": cell.seed,
            "sites": cell.sites,
            "metric": cell.metric,
            "delta": cell.delta,
            "unit": cell.unit,
            "neighbours": NEIGHBOURS,
        }
        for cell in results
        for cell_round in cell.rounds
    ]
    with disk_errors():
        parquet.write_table(pa.Table.from_pylist(rows, schema), path)


COLUMNS: dict[str, type] = {
    "variant": str,
    "seed": int,
    "round": int,
    "metric": str,
    "score": float,
    "loss": float,
    "seconds": float,
    "bytes_in": int,
    "bytes_out": int,
    "sites": int,
    "updates": int,
    "epsilon": float,
    "delta": float,
    "unit": str,
    "neighbours": str,
    "averaging_loss": float,
    "mean_cosine": float,
}
