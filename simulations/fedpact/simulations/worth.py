"""Was it worth joining, for every site of a simulation: alone, shared and personal."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedpact.client.personal import RunFolder
from fedpact.client.validation import split
from fedpact.client.worth import Bench, read_records
from fedpact.common import model as models
from fedpact.common import tabular
from fedpact.common.database import disk_errors
from fedpact.common.errors import RunError, UsageError
from fedpact.common.records import EncodedRecords
from fedpact.common.worth import FILE, Worth
from fedpact.server.conduct import public_test_set
from fedpact.server.runs import RunView
from fedpact.simulations.federation import Federation, seeded_workbench


def write_worth(
    federation: Federation,
    view: RunView,
    test: Path | None,
    partition: str,
    study_folder: Path,
    folder: Path,
    *,
    private: bool,
    seed: int,
) -> None:
    """The same as `worth_of`, written into the simulation's folder for `fedpact run report`.

    Raises:
        FedpactError: as `worth_of`.
        StorageError: it cannot be written.
    """
    worth = worth_of(
        federation, view, test, partition, study_folder, private=private, seed=seed
    )
    with disk_errors():
        (folder / FILE).write_text(worth.model_dump_json(indent=2), encoding="utf-8")


def worth_of(
    federation: Federation,
    view: RunView,
    test: Path | None,
    partition: str,
    study_folder: Path,
    *,
    private: bool,
    seed: int,
) -> Worth:
    """Train every site alone, and compare with what the run gave it.

    Args:
        federation: whose sites took part.
        view: the run, which has ended.
        test: test records, with the column that the partition names, if it names one.
        partition: how the data was dealt out; `column:NAME` deals out the test records too.
        study_folder: of the study file, for its public test set.
        private: whether sites are trained alone with the noise of the study.
        seed: of sampling and noise.

    Raises:
        UsageError: there is nothing to measure on.
        DataError: a test set cannot be read, or does not fit the study.
        RunError: the run has no adapter.
    """
    study, workbench = view.study, seeded_workbench(seed)
    if not view.adapter:
        raise RunError(f"The run {view.id} has no adapter.")
    shared = models.load_peft(Path(view.adapter))
    public = public_test_set(study, study_folder)
    own: Mapping[str, EncodedRecords] = {}
    if test is not None:
        every = read_records(test, study, workbench)
        own = _dealt(every, test, partition)
        public = public if public is not None else every
    start = study.adapter.start_beside(study_folder)
    first = models.first_weights(study, start, workbench.model(study).module)
    sites = []
    for index, shard in enumerate(federation.shards):
        mine = split(study, federation.records.select(shard.indices))
        bench = Bench(study, shard.name, workbench, mine.training, first)
        runs = RunFolder(federation.home(index).runs)
        kept = runs.before(view.id, study.training.rounds + 1)
        sites.append(
            bench.worth(
                shared, kept, own.get(shard.name, mine.validation), public, private=private
            )
        )
    return Worth.of(study, view.id, sites, private=private)


def _dealt(every: EncodedRecords, test: Path, partition: str) -> dict[str, EncodedRecords]:
    """Each site's own of the test records, where the partition is by a column."""
    kind, _, column = partition.partition(":")
    if kind != "column":
        return {}
    values = tabular.read(test).columns.get(column)
    if values is None:
        raise UsageError(
            f"{test} has no column {column!r}, which says whose its records are.",
            advice="Add it, or leave --test out.",
        )
    names = np.array([str(value) for value in values])
    return {str(name): every.select(np.flatnonzero(names == name)) for name in np.unique(names)}
