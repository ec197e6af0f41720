"""What a row's first round begins with, where it begins with public data: trained once, in one place."""

import shutil
from dataclasses import replace
from pathlib import Path

import tomli_w
from rich.console import Console

from _rows import START, Row
from _study import batch_size, labels_of, study_of
from fedpact.common import tabular
from fedpact.simulations.simulate import Simulation, simulate


def train_start(row: Row, source: Path, folder: Path) -> None:
    """Train the row's start into `START` of a folder, unless it is there.

    Args:
        row: says on which data, and how; nothing is done where it says none.
        source: the folder of all data sets.
        folder: of the row's study.

    Raises:
        FedpactError: it cannot be trained.
    """
    if row.start is None or (folder / START).is_dir():
        return
    data, recipe = row.start
    alone = replace(row, data=data, recipe=recipe, epsilon=None)
    path = source / data.folder / f"train{data.suffix}"
    table = tabular.read(path)
    labels, batch = labels_of(data, table.columns), batch_size(alone, table.records, 1)
    document = study_of(alone, START, labels, batch)
    del document["evaluation"]
    study = folder / f"{START}.toml"
    study.parent.mkdir(parents=True, exist_ok=True)
    study.write_text(tomli_w.dumps(document), encoding="utf-8")
    work = folder / "public"
    shutil.rmtree(work, ignore_errors=True)
    found, _ = simulate(
        Simulation(study, data=path, sites=1, folder=work), Console(stderr=True)
    )
    Path(found.adapter).rename(folder / START)
    shutil.rmtree(work)
