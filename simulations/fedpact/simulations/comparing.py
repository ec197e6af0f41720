"""`fedpact simulate --compare`: every variant with every seed, and what came of it.

With `--tune`, each variant first tries the values asked for with seeds of their own, on records
held out from the training data: what is reported never chooses, and each variant has as many
tries. No ε pays for these tries; the results say so.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from rich.console import Console

from fedpact.common import figures, folder_lock, study_check
from fedpact.common import study as studies
from fedpact.common.database import disk_errors
from fedpact.common.errors import StudyError, UsageError
from fedpact.common.study import Study
from fedpact.simulations import (
    cell_runner,
    comparison,
    comparison_report,
    comparison_results,
    held_out,
)
from fedpact.simulations.cell_runner import Bar
from fedpact.simulations.cells import Cell, CellResult
from fedpact.simulations.comparison import Changes, Variant
from fedpact.simulations.comparison_results import ComparisonResult, Try, Tuning
from fedpact.simulations.federation import find_data
from fedpact.simulations.held_out import HeldOut

# The same however many seeds are reported, so that more of them choose nothing anew.
_FIRST_TUNING_SEED: Final = 1_000_000


@dataclass(frozen=True)
class Comparison:
    """What a comparison was asked.

    Attributes:
        study: the study file that variants change.
        variants: what is compared; gaps are to the first.
        seeds: of partition, sampling, noise and the adapter's first values.
        folder: where it is kept; the same folder goes on with what is there.
        tune: values that each variant tries first; empty: nothing is tuned.
        tune_seeds: with how many seeds each is tried.
        data: the data file; None looks beside the study.
        sites: how many; None takes the study's number, or a column's values.
        partition: how the data are dealt out.
        jobs: in how many processes.
        measure: which of the task's measures is compared and tuned for, such as `micro_f1`;
            empty takes the mean of the records' scores.
    """

    study: Path
    variants: Sequence[Variant]
    seeds: Sequence[int]
    folder: Path
    tune: Sequence[Changes] = ()
    tune_seeds: int = 1
    data: Path | None = None
    sites: int | None = None
    partition: str = "iid"
    jobs: int = 1
    measure: str = ""


def compare(asked: Comparison, console: Console) -> ComparisonResult:
    """Run a comparison, as far as it has not been run already, and write its report.

    Returns:
        what came of it, cells that failed included.

    Raises:
        UsageError: what was asked does not fit together.
        StudyError: a variant is not a valid study, or has nothing to be measured on.
        DataError: the data cannot be read.
        RunError: a process of the comparison was killed.
        StorageError: the folder cannot be written.
    """
    figures.require_library()
    plan = _Plan.of(asked)
    folder = asked.folder.absolute() / "cells"
    with disk_errors():
        folder.mkdir(parents=True, exist_ok=True)

    def taken() -> UsageError:
        return UsageError(f"Another process compares in {asked.folder}.")

    with (
        folder_lock.hold(asked.folder / "compare.lock", taken),
        Bar(console, plan.rounds).shown() as bar,
    ):
        tunings = _tune(plan, folder, bar) if asked.tune else {}
        results = cell_runner.run(plan.cells(tunings), folder, asked.jobs, bar)
        found = comparison_results.summarise(
            plan.study, asked.variants, results, tunings, plan.setting, plan.metric
        )
        comparison_report.write(found, results, asked.folder)
    return found


@dataclass(frozen=True)
class _Plan:
    """What was asked, read and checked.

    Attributes:
        asked: what it was.
        document: the study file's content.
        study: the study without changes.
        data: the data file.
    """

    asked: Comparison
    document: Mapping[str, Any]
    study: Study
    data: Path

    @classmethod
    def of(cls, asked: Comparison) -> Self:
        """Check every variant before any is run."""
        folder = asked.folder
        if folder.exists() and any(folder.iterdir()) and not (folder / "cells").is_dir():
            raise UsageError(
                f"{folder} is not empty and holds no comparison.",
                advice="Name another --folder.",
            )
        study = studies.load(asked.study)
        if study.evaluation.data is None:
            raise StudyError(
                "The study has no public test set to compare on.",
                advice="Name one in [evaluation] data.",
            )
        document, _ = study_check.read(asked.study)
        data = asked.data or find_data(asked.study, study)
        plan = cls(asked, document, study, data)
        for variant in asked.variants:
            for tried in plan.tried:
                if twice := sorted(set(tried) & set(variant.changes)):
                    raise UsageError(f"{twice[0]} is both compared and tuned.")
                comparison.changed(document, {**variant.changes, **tried})
        return plan

    @property
    def tried(self) -> Sequence[Changes]:
        """The values that a variant may have beside its own."""
        return self.asked.tune or ({},)

    @property
    def rounds(self) -> int:
        """Rounds of all cells together; as many whichever values are chosen, or nearly so."""
        seeds, total = len(self.asked.seeds), 0
        for variant in self.asked.variants:
            rounds = [
                comparison.changed(self.document, {**variant.changes, **values}).training.rounds
                for values in self.tried
            ]
            tries = self.asked.tune_seeds if self.asked.tune else 0
            total += seeds * rounds[0] + tries * sum(rounds)
        return total

    @property
    def setting(self) -> comparison_results.Setting:
        """What all variants share, for the results."""
        return comparison_results.Setting(
            data=self.data.name,
            test_set=self.study.evaluation.data or "",
            partition=self.asked.partition,
            seeds=tuple(self.asked.seeds),
        )

    @property
    def metric(self) -> str:
        """What scores are, in words."""
        return (self.asked.measure or self.study.task.kind.score).replace("_", " ")

    def data_of(self, variant: Variant) -> Path:
        """The data file of a variant."""
        return variant.data or self.data

    def cell(self, variant: Variant, values: Changes, seed: int) -> Cell:
        """A variant with some values beside its own and one seed."""
        changes = {**variant.changes, **values, "training.seed": seed}
        partition = variant.partition or self.asked.partition
        sites = variant.sites or self.asked.sites
        if partition.startswith("column:"):
            sites = None
        elif sites is None:
            sites = len(self.study.institutions) or 3
        return Cell(
            variant=variant.name,
            study=comparison.changed(self.document, changes),
            folder_of_study=self.asked.study.absolute().parent,
            data=self.data_of(variant).absolute(),
            partition=partition,
            sites=sites,
            seed=seed,
            attack=variant.attack,
            measure=self.asked.measure,
        )

    def cells(self, tunings: Mapping[str, Tuning]) -> list[Cell]:
        """The cells that are reported: seed by seed, so that what is there early compares.

        A variant for which no value could be chosen has none.
        """
        chosen: dict[str, Changes | None] = {
            variant.name: {} for variant in self.asked.variants
        }
        chosen |= {name: tuning.chosen for name, tuning in tunings.items()}
        return [
            self.cell(variant, values, seed)
            for seed in self.asked.seeds
            for variant in self.asked.variants
            if (values := chosen[variant.name]) is not None
        ]


def _tune(plan: _Plan, folder: Path, bar: Bar) -> dict[str, Tuning]:
    """For each variant, the values that do best on records held out."""
    asked = plan.asked
    free = (seed for seed in itertools.count(_FIRST_TUNING_SEED) if seed not in asked.seeds)
    seeds = tuple(itertools.islice(free, asked.tune_seeds))
    tries: list[tuple[Variant, Changes, Cell]] = []
    for variant, seed in itertools.product(asked.variants, seeds):
        parts = held_out.hold_out(
            plan.data_of(variant), plan.study.task, seed, asked.folder.absolute() / "tuning"
        )
        tries += [
            (variant, values, _on(parts, plan.cell(variant, values, seed), values))
            for values in asked.tune
        ]
    results = cell_runner.run([cell for _, _, cell in tries], folder, asked.jobs, bar)
    by_seed: dict[tuple[str, str], list[CellResult]] = defaultdict(list)
    for (variant, values, _), result in zip(tries, results, strict=True):
        by_seed[variant.name, comparison.name_of(values)].append(result)
    return {
        variant.name: Tuning.of(
            seeds,
            [
                Try.of(values, by_seed[variant.name, comparison.name_of(values)])
                for values in asked.tune
            ],
        )
        for variant in asked.variants
    }


def _on(parts: HeldOut, cell: Cell, values: Changes) -> Cell:
    """The same cell, trained on one part and measured on the other."""
    measured = {"data": parts.validation.name, "sha256": None, "contributions": "none"}
    evaluation = cell.study.evaluation.model_copy(update=measured)
    return replace(
        cell,
        variant=f"{cell.variant} tried with {comparison.name_of(values)}",
        study=cell.study.model_copy(update={"evaluation": evaluation}),
        folder_of_study=parts.validation.parent,
        data=parts.training,
    )
