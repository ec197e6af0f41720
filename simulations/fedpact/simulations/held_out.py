"""Records held out from the training data, on which a comparison tunes.

What is reported is measured on the study's public test set, which never chooses anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedpact.common import tabular
from fedpact.common.database import disk_errors
from fedpact.common.task_section import Task

SHARE: Final = 0.2
"""The share of records (or persons) that is held out."""


@dataclass(frozen=True)
class HeldOut:
    """The two parts of a data file, as files of their own."""

    training: Path
    validation: Path


def hold_out(data: Path, task: Task, seed: int, folder: Path) -> HeldOut:
    """Part a data file in two; a person's records stay together.

    Args:
        data: the file.
        task: which column says whose a record is, if one does.
        seed: same seed, same parts.
        folder: where the parts are written; made if missing.

    Raises:
        DataError: the file cannot be read.
        StorageError: the parts cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    table = tabular.read(data)
    owners = table.columns.get(task.person_column or "", list(range(table.records)))
    chosen = _chosen(list(map(str, owners)), seed)
    files = HeldOut(
        folder / f"{table.sha256[:12]}-{seed}-training.parquet",
        folder / f"{table.sha256[:12]}-{seed}-validation.parquet",
    )
    whole = pa.table(table.columns)
    with disk_errors():
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(whole.filter(pa.array(~chosen)), files.training)
        parquet.write_table(whole.filter(pa.array(chosen)), files.validation)
    return files


def _chosen(owners: Sequence[str], seed: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which records are held out."""
    names = sorted(set(owners))
    most = max(1, round(SHARE * len(names)))
    drawn = np.random.default_rng(seed).permutation(len(names))[:most]
    held = {names[i] for i in drawn}
    return np.array([owner in held for owner in owners])
