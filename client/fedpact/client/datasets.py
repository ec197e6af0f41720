"""The data sets of a site: which files they are, and their rows for a study.

A file is registered once, by its content: a file that has changed since is not the data set
that was registered, and is not used. A data set's rows are all used, or none: what does not
fit the study is an error that says what and where.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from fedpact.client.tables import DatasetRow, IdentityRow, exclusive, reading
from fedpact.common import tabular
from fedpact.common.errors import DataError, UsageError
from fedpact.common.study import Study

if TYPE_CHECKING:
    from fedpact.common.tasks import Task

_MAX_NAME = 120


@dataclass(frozen=True)
class Dataset:
    """A registered data set.

    Attributes:
        sha256: of its content: what it is, whatever it is called.
        records: how many there are. A secret of the site, unless it declares it.
        format: csv, jsonl or parquet.
        population: whom its records are sampled from, in its steward's words. Data sets of one
            population share one budget.
    """

    name: str
    path: Path
    sha256: str
    records: int
    format: str
    added_at: datetime
    population: str


class Datasets:
    """The register of a site's data sets."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self, name: str, path: Path, population: str | None = None
    ) -> tuple[Dataset, list[str]]:
        """Register a file under a name, or take its new content for a name that is known.

        What the name, the content or the population had spent before stays spent.

        Args:
            name: what studies call it.
            path: a CSV, JSON lines or Parquet file.
            population: whom it is sampled from; without it what it was before, or `name`.

        Returns:
            the data set, and what its owner should know about it (one sentence each).

        Raises:
            DataError: the file cannot be used.
            UsageError: the name cannot be used.
            StorageError: the register cannot be written.
        """
        _require_name(name, "a data set's name")
        if population is not None:
            _require_name(population, "a population's name")
        path = path.expanduser().absolute()
        table = tabular.read(path)
        with exclusive(self._engine, "datasets") as session:
            row = session.get(DatasetRow, name) or DatasetRow(name=name, population=name)
            warnings = _shared(session, row, table.sha256, population)
            row.population = population or row.population
            row.path = str(path)
            row.sha256 = table.sha256
            row.records = table.records
            row.format = table.format
            row.added_at = datetime.now(UTC)
            session.add(row)
            session.merge(IdentityRow(name=name, sha256=row.sha256, population=row.population))
            session.flush()
            dataset = _dataset(row)
        if table.duplicates:
            warnings.append(
                f"{table.duplicates} of its {table.records} records repeat an earlier one: the "
                "promise covers one record, so whoever stands in it twice is protected less."
            )
        return dataset, warnings

    def get(self, name: str) -> Dataset:
        """The data set called `name`.

        Raises:
            DataError: there is none.
            StorageError: the register cannot be read.
        """
        with reading(self._engine) as session:
            if (row := session.get(DatasetRow, name)) is not None:
                return _dataset(row)
            known = list(session.scalars(select(DatasetRow.name)))
        raise DataError(
            f"There is no data set {name}{tabular.nearest(name, known)}",
            advice="`fedpact client dataset add` adds one, `dataset list` shows them.",
        )

    def list(self) -> list[Dataset]:
        """All data sets, by name.

        Raises:
            StorageError: the register cannot be read.
        """
        with reading(self._engine) as session:
            return [
                _dataset(row)
                for row in session.scalars(select(DatasetRow).order_by(DatasetRow.name))
            ]


def _require_name(name: str, what: str) -> None:
    if not 0 < len(name) <= _MAX_NAME or name != name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} cannot be {what}.")


def _shared(
    session: Session, row: DatasetRow, sha256: str, population: str | None
) -> list[str]:
    """Whose budget a data set is about to share, as its owner should know."""
    others = list(
        session.scalars(
            select(DatasetRow).where(DatasetRow.name != row.name).order_by(DatasetRow.name)
        )
    )
    now = population or row.population
    warnings = [
        f"It has the same content as {other.name}, and shares its privacy budget."
        for other in others
        if other.sha256 == sha256
    ]
    warnings += [
        f"It is of the same population as {other.name}, and shares its privacy budget."
        for other in others
        if other.population == now and other.sha256 != sha256
    ]
    if now != row.population and row.sha256 is not None:
        warnings.append(
            f"Until now its population was {row.population}: it shares the privacy budgets of "
            "both from now on."
        )
    return warnings


def require_unchanged(dataset: Dataset) -> None:
    """Make sure that the file still is what was registered.

    Raises:
        DataError: it is missing or has changed.
    """
    if tabular.content_digest(dataset.path) != dataset.sha256:
        raise _changed(dataset)


def load_rows(dataset: Dataset, task: "Task") -> dict[str, list[Any]]:
    """The columns of a data set that a task reads.

    Raises:
        DataError: the file is missing or has changed, lacks a column, has a record without
            a value, or a label that the study does not know.
    """
    table = tabular.read(dataset.path)
    if table.sha256 != dataset.sha256:
        raise _changed(dataset)
    return tabular.rows_for(table, task, dataset.path)


def _changed(dataset: Dataset) -> DataError:
    return DataError(
        f"{dataset.path} is no longer the data set {dataset.name}: its content has changed.",
        advice=f"`fedpact client dataset add {dataset.name} {dataset.path}` takes the new.",
    )


def _dataset(row: DatasetRow) -> Dataset:
    return Dataset(
        row.name,
        Path(row.path),
        row.sha256,
        row.records,
        row.format,
        row.added_at,
        row.population,
    )


def find_dataset(datasets: Datasets, study: Study) -> Dataset:
    """The data set that a study means: the one it names, or the site's only one.

    Raises:
        DataError: there is no such data set, or which one is meant is not clear.
    """
    if study.study.dataset is not None:
        return datasets.get(study.study.dataset)
    known = datasets.list()
    if len(known) != 1:
        raise DataError(
            f"The study names no data set and this site has {len(known)}.",
            advice="Name one in [study] dataset.",
        )
    return known[0]
