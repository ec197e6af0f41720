"""A row as files: its records, fewer if asked for, and the study that all its variants change."""

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from _rows import Data, Row
from fedpact.common import tabular
from fedpact.simulations.comparison import Variant

DELTA = 1e-5
BASE = "sentence-transformers/all-MiniLM-L6-v2"

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Files:
    """A row's files, and what follows from them.

    Attributes:
        study: the study file.
        training: records to train on.
        test: records to measure on.
        sites: how many sites there are.
        batch: records expected in a step of a site.
    """

    study: Path
    training: Path
    test: Path
    sites: int
    batch: int

    def with_batch(self, variant: Variant) -> Variant:
        """A variant among other sites, with the same records in a step of all of them together."""
        if variant.sites is None:
            return variant
        batch = self.batch * self.sites // variant.sites
        return replace(variant, changes={"training.batch_size": batch, **variant.changes})


def prepare(
    row: Row, source: Path, folder: Path, records: int | None, rounds: int | None
) -> Files:
    """Write a row's records and its study.

    Args:
        row: which.
        source: the data set's folder.
        folder: where they are written; made if missing.
        records: of the training data and of the test set, at most; None: all.
        rounds: in the place of the recipe's.

    Raises:
        DataError: the data cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns, files = {}, {}
    for part in ("train", "test"):
        table = tabular.read(source / f"{part}{row.data.suffix}")
        kept = sorted(np.random.default_rng(0).permutation(table.records)[:records])
        columns[part] = {k: [v[i] for i in kept] for k, v in table.columns.items()}
        files[part] = _write(folder / f"{part}{row.data.suffix}", columns[part])
    train = columns["train"]
    column = row.partition.removeprefix("column:")
    sites = row.sites or len(set(train[column]))
    batch = batch_size(row, len(next(iter(train.values()))), sites)
    document = study_of(row, folder.name, labels_of(row.data, train), batch, rounds)
    study = folder / "study.toml"
    study.write_text(tomli_w.dumps(document), encoding="utf-8")
    return Files(study, files["train"], files["test"], sites, batch)


def batch_size(row: Row, records: int, sites: int) -> int:
    """Records expected in a step of a site, from all records and the number of sites."""
    return max(1, round(row.recipe.rate * records / sites))


def labels_of(data: Data, columns: Columns) -> list[str]:
    """The labels that stand in public data, as the task wants them."""
    name, column = data.task.get("name"), str(data.task.get("label_column", "label"))
    values = columns[column]
    match name:
        case "question-answering":
            return []
        case "token-classification":
            return sorted({tag for tags in values for tag in tags})
        case "multi-label-classification":
            return sorted({label for joined in values for label in joined.split("|") if label})
        case _:
            return sorted(set(values))


def study_of(
    row: Row, name: str, labels: Sequence[str], batch: int, rounds: int | None = None
) -> dict[str, Any]:
    """The study that a row's variants change."""
    recipe = row.recipe
    private: dict[str, Any] = {"mechanism": "none"}
    if row.epsilon is not None:
        private = {
            "target_epsilon": row.epsilon,
            "target_delta": DELTA,
            **recipe.privacy,
        }
    every = {} if recipe.every is None else {"every": recipe.every}
    return {
        "study": {"name": name},
        "task": {**row.data.task, **({"labels": list(labels)} if labels else {})},
        "model": {"base": BASE},
        "adapter": dict(recipe.adapter),
        "training": {
            "rounds": rounds or recipe.rounds,
            "batch_size": batch,
            "max_length": row.data.max_length,
            **recipe.training,
        },
        "privacy": private,
        "aggregation": dict(recipe.aggregation),
        "evaluation": {"data": f"test{row.data.suffix}", **every},
    }


def _write(path: Path, columns: Columns) -> Path:
    """Gzipped CSV or JSON lines, the same bytes each time."""
    rows = list(zip(*columns.values(), strict=True))
    if path.name.endswith(".jsonl.gz"):
        records = (dict(zip(columns, row, strict=True)) for row in rows)
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([list(columns), *rows])
        text = buffer.getvalue()
    content = gzip.compress(text.encode(), mtime=0)
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)
    return path
