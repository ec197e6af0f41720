"""A simulated federation: one data set dealt out to sites that are real in all but place.

Each site has its own folder, ledger, gate and policy, as an institution's has; what they
share is the process, the resident base model and one tokenisation of the data.
"""

import hashlib
import itertools
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import ValidationError
from sqlalchemy.orm import Session

from fedpact.client.datasets import Dataset
from fedpact.client.gate import Gate
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.client.personal import RunFolder
from fedpact.client.policy import Policy
from fedpact.client.site import Site
from fedpact.client.tables import DatasetRow
from fedpact.client.validation import split
from fedpact.client.workbench import Workbench
from fedpact.common import base_models, tabular, tasks
from fedpact.common.errors import DataError, UsageError
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study
from fedpact.common.study_learning import BaseModelRef
from fedpact.common.study_parties import Institution, Sector
from fedpact.common.task_section import Task
from fedpact.simulations.partition import Shard, parse_partition, partition

DATA = "simulated"
_SECTORS = tuple(Sector)

# What a simulated site allows: the study alone decides. No institution's policy is like it.
_POLICY = Policy(
    allow_outside_recipients=True,
    allow_model_folders=True,
    require_model_sha256=False,
    require_dp=False,
    max_epsilon=1e6,
    max_delta=0.5,
    minimum_records=1,
    allow_site_metrics=True,
    allow_insecure_seed=True,
)


@dataclass(frozen=True, eq=False)
class Federation:
    """Data dealt out to sites.

    Attributes:
        study: with the sites as its institutions.
        shards: each site's records.
        records: all records, encoded.
        sha256: of the data file.
        folder: where sites keep their things.
    """

    study: Study
    shards: tuple[Shard, ...]
    records: EncodedRecords
    sha256: str
    folder: Path

    def home(self, index: int) -> ClientHome:
        """The folder of one of the sites; what a data file calls it must not lead elsewhere."""
        name = re.sub(r"[^\w-]+", "_", self.shards[index].name)
        return ClientHome(self.folder / f"{index + 1:03}-{name[:60]}", durable=False)

    def site(self, index: int, workbench: Workbench) -> Site:
        """Open one of the sites."""
        shard, home = self.shards[index], self.home(index)
        engine = home.open_database()
        content = hashlib.sha256(self.sha256.encode() + shard.indices.tobytes()).hexdigest()
        dataset = Dataset(
            DATA, home.folder, content, len(shard.indices), "csv", datetime.now(UTC), DATA
        )
        with Session(engine) as session:
            session.merge(
                DatasetRow(
                    name=DATA,
                    path=str(home.folder),
                    sha256=content,
                    records=dataset.records,
                    format=dataset.format,
                    added_at=dataset.added_at,
                    population=dataset.population,
                )
            )
            session.commit()
        mine = self.records.select(shard.indices)

        return Site(
            name=shard.name,
            dataset=lambda _: dataset,
            records=lambda study, _: split(study, mine),
            agreed=lambda _: None,
            policy=lambda: _POLICY.model_copy(update={"tasks": (self.study.task.name,)}),
            ledger=Ledger(engine),
            gate=Gate(engine, home.outbox),
            runs=RunFolder(home.runs),
            workbench=workbench,
        )

    def prepare(self) -> None:
        """Make the sites' folders; their databases are copies of one that is up to date."""
        first = self.home(0)
        first.open_database().dispose()
        for home in map(self.home, range(1, len(self.shards))):
            home.create()
            shutil.copyfile(first.folder / "fedpact.db", home.folder / "fedpact.db")


def deal(
    study: Study, data: Path, spec: str, sites: int | None, seed: int, folder: Path
) -> Federation:
    """Read a data set and deal it out.

    Args:
        study: whose task reads the data; its institutions give way to the simulated ones.
        data: a CSV, JSON lines or Parquet file.
        spec: how to deal, as `fedpact.simulations.partition` spells it.
        sites: how many; None takes the study's number of institutions, or a column's values.
        seed: of the dealing.
        folder: where sites keep their things.

    Raises:
        UsageError: the partition cannot be made of this data.
        DataError: the data cannot be read or does not fit the study.
        StudyError: the study does not allow such sites.
    """
    task = tasks.for_study(study)
    table, rows, records = _read(_Reading.of(study, data))
    columns = {name: [str(v) for v in values] for name, values in table.columns.items()}
    try:
        how = parse_partition(spec)
        if sites is None and not spec.startswith("column:"):
            sites = len(study.institutions) or 3
        labels = task.strata(rows)
        owners = rows.get(study.task.person_column) if study.task.person_column else None
        shards = partition(
            how, labels=labels, columns=columns, sites=sites, seed=seed, persons=owners
        )
    except ValueError as error:
        raise UsageError(f"{error}") from error
    institutions = tuple(
        _institution(shard, sector, rank, owners)
        for shard, sector, rank in zip(
            shards, itertools.cycle(_SECTORS), itertools.cycle(_ranks(study)), strict=False
        )
    )
    quorum = min(study.federation.quorum, len(shards))
    study = study.model_copy(
        update={"federation": study.federation.model_copy(update={"quorum": quorum})}
    ).with_institutions(institutions)
    return Federation(study, tuple(shards), records, table.sha256, folder)


@dataclass(frozen=True)
class _Reading:
    """A data set as a study reads it; equal where what is read is, whatever else differs."""

    data: Path
    sha256: str
    task: Task
    model: BaseModelRef
    max_length: int
    study: Study = field(compare=False)

    @classmethod
    def of(cls, study: Study, data: Path) -> Self:
        """What a study reads of a file as it is now."""
        digest = tabular.content_digest(data)
        return cls(data, digest, study.task, study.model, study.training.max_length, study)


@lru_cache(maxsize=2)
def _read(what: _Reading) -> tuple[tabular.Table, dict[str, list[str]], EncodedRecords]:
    """Read and tokenise a data set, once for all simulations in this process."""
    task = tasks.for_study(what.study)
    table = tabular.read(what.data)
    rows = tabular.rows_for(table, task, what.data)
    processor = base_models.load_processor(what.study)
    return table, rows, task.encode(processor, rows, what.max_length)


def _ranks(study: Study) -> Sequence[int | None]:
    """The ranks of the study's institutions, which the simulated ones take in turn."""
    return [one.r for one in study.institutions] or [None]


def _institution(
    shard: Shard, sector: Sector, rank: int | None, owners: Sequence[str] | None
) -> Institution:
    persons = None if owners is None else len({owners[i].strip() for i in shard.indices})
    try:
        return Institution(
            name=shard.name, sector=sector, records=len(shard.indices), persons=persons, r=rank
        )
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise UsageError(f"{shard.name!r} cannot be an institution's name: {why}.") from error


def find_data(study_file: Path, study: Study) -> Path:
    """The data file that lies beside a study file.

    Raises:
        DataError: there is none, and where it was looked for.
    """
    names = [*filter(None, [study.study.dataset]), study_file.stem, "data", "train"]
    tried = [
        study_file.parent / f"{name}{suffix}" for name in names for suffix in tabular.SUFFIXES
    ]
    for path in tried:
        if path.is_file():
            return path
    raise DataError(
        f"There is no data beside {study_file}: none of "
        f"{', '.join(names)} with {', '.join(tabular.SUFFIXES)}.",
        advice="Name a file with --data.",
    )


def seeded_workbench(seed: int) -> Workbench:
    """A workbench whose sampling and noise follow a seed. For simulations only."""
    return Workbench(rng=np.random.default_rng(seed))
