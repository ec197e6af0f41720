"""Every site of a federation, alone, shared and personal: trained once, then measured on test records.

A part is one federation with one seed, or one of its sites alone: a federation of one, with the
same rounds, steps and optimisers, without DP. Each part that ended is a file; a later call goes on
with what is there.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from _site_figures import ALONE, SHARED, Had, SiteScores
from fedpact.client.personal import RunFolder
from fedpact.client.worth import Bench, read_records
from fedpact.common import model as models
from fedpact.common import tabular
from fedpact.common.adapter import Weights
from fedpact.common.errors import FedpactError
from fedpact.common.study_learning import Privacy
from fedpact.common.study_together import Personalisation
from fedpact.server import runs
from fedpact.server.results import RunResult
from fedpact.simulations.cells import Cell
from fedpact.simulations.federation import Federation, deal, seeded_workbench
from fedpact.simulations.partition import Indices
from fedpact.simulations.simulate import conduct_here, open_coordinator

_NONE: Final[Indices] = np.arange(0)


@dataclass(frozen=True)
class Part:
    """What is run: a federation, or one of its sites.

    Attributes:
        cell: the federation; its study's public test set is what is measured on.
        site: the one that is alone; None: all together.
        folder: where the result is kept.
    """

    cell: Cell
    site: str | None
    folder: Path

    @property
    def path(self) -> Path:
        """The file of the result."""
        return self.folder / f"{self.cell.name}.json"

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.cell.variant}, seed {self.cell.seed}"


class Result(BaseModel):
    """How a part ended."""

    model_config = ConfigDict(frozen=True)

    identity: str
    seconds: float
    epsilon: float | None
    bytes_out: float
    """What a site sent, on average."""
    shared: dict[str, Had]
    """By site; empty where what is shared cannot predict by itself."""
    personal: dict[str, Had]
    """By site; empty where nothing is personal."""


def plan(cells: Sequence[Cell], folder: Path, alone_folder: Path) -> list[Part]:
    """The federations, and once for each seed its sites alone.

    Args:
        cells: the federations, all dealt out alike; sites alone train as in the first.
        folder: where their results are.
        alone_folder: where those of sites alone are; rows on the same data may share it.
    """
    parts = [Part(cell, None, folder) for cell in cells]
    for cell in {cell.seed: cell for cell in reversed(cells)}.values():
        alone = _without_others(cell)
        parts += [
            Part(replace(alone, variant=f"{site} {ALONE}"), site, alone_folder)
            for site in (shard.name for shard in _dealt(cell, folder).shards)
        ]
    return parts


def _without_others(cell: Cell) -> Cell:
    """The study of a site alone: nothing leaves, so there is no DP, and all of it is its own."""
    changes = {
        "study": cell.study.study.model_copy(update={"name": ALONE}),
        "privacy": Privacy(mechanism="none"),
        "personalisation": Personalisation(),
    }
    return replace(cell, study=cell.study.model_copy(update=changes))


def run(
    parts: Sequence[Part], jobs: int, console: Console
) -> tuple[list[Result | None], list[str]]:
    """Run the parts that have not ended.

    Returns:
        their results, None for those that failed, and why they did.
    """
    for part in parts:
        part.folder.mkdir(parents=True, exist_ok=True)
    waiting = [part for part in parts if _ended(part) is None]
    console.print(f"{len(parts) - len(waiting)} of {len(parts)} parts are there already")
    why = []
    for part, failure in _each(waiting, min(jobs, len(waiting))):
        console.print(f"{part.name}: {failure or 'done'}", highlight=False)
        if failure:
            why.append(f"{part.name}: {failure}")
    return [_ended(part) for part in parts], why


def _each(waiting: Sequence[Part], jobs: int) -> Iterator[tuple[Part, str]]:
    if jobs <= 1:
        yield from ((part, _run(part)) for part in waiting)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    context = get_context("spawn")  # torch's threads do not outlive a fork
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(threads,)
    ) as pool:
        yield from zip(waiting, pool.map(_run, waiting), strict=True)


def _begin(threads: int) -> None:
    import torch

    logging.getLogger("fedpact").setLevel(logging.ERROR)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _ended(part: Part) -> Result | None:
    try:
        result = Result.model_validate_json(part.path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    return result if result.identity == part.cell.identity else None


def _run(part: Part) -> str:
    """Run a part to its file; why it failed, if it did."""
    with tempfile.TemporaryDirectory(dir=part.folder) as home:
        try:
            result = _measured(part, Path(home))
        except FedpactError as error:
            return str(error)
        unfinished = Path(home) / "result.json"
        unfinished.write_text(result.model_dump_json(indent=2), encoding="utf-8")
        unfinished.replace(part.path)
    return ""


def _measured(part: Part, home: Path) -> Result:
    began, cell = time.monotonic(), part.cell
    federation = _dealt(cell, home / "sites")
    if part.site is not None:
        federation = _only(federation, part.site)
    federation.prepare()
    engine = open_coordinator(home)
    try:
        run_id = runs.create(engine, federation.study, cell.folder_of_study)
        conduct_here(engine, run_id, federation, home / "artifacts", cell.seed)
        view = runs.view(engine, run_id)
    finally:
        engine.dispose()
    sites = RunResult.of(view).sites
    shared, personal = _had(federation, view, cell)
    return Result(
        identity=cell.identity,
        seconds=time.monotonic() - began,
        epsilon=max((s.epsilon for s in sites if s.epsilon is not None), default=None),
        bytes_out=sum(s.bytes_out for s in sites) / len(sites),
        shared=shared,
        personal=personal,
    )


def _dealt(cell: Cell, folder: Path) -> Federation:
    """The cell's federation; nothing is measured between its rounds."""
    evaluation = cell.study.evaluation.model_copy(update={"data": None})
    study = cell.study.model_copy(update={"evaluation": evaluation})
    return deal(study, cell.data, cell.partition, cell.sites, cell.seed, folder)


def _only(federation: Federation, site: str) -> Federation:
    """A federation of one of the sites."""
    study = federation.study.with_institutions((federation.study.institution(site),))
    shards = tuple(shard for shard in federation.shards if shard.name == site)
    return replace(federation, study=study, shards=shards)


def _had(
    federation: Federation, view: runs.RunView, cell: Cell
) -> tuple[dict[str, Had], dict[str, Had]]:
    """What each site has of an ended run: the shared adapter, and its personal one."""
    study, workbench = federation.study, seeded_workbench(cell.seed)
    test = cell.folder_of_study / (cell.study.evaluation.data or "")
    every = read_records(test, study, workbench)
    own = _own(test, cell.partition)
    model, sent = workbench.model(study), models.load_peft(Path(view.adapter))

    def scores(adapter: Weights, rows: Indices) -> npt.NDArray[np.float32]:
        return model.trainer.score(adapter, every.select(rows)).scores

    shared, personal = {}, {}
    if not study.personalisation.keeps_tensors:
        found = scores(model.first.overlaid(sent), np.arange(len(every)))
        for shard in federation.shards:
            shared[shard.name] = Had(
                own=_mean(found[own.get(shard.name, _NONE)]), whole=_mean(found)
            )
    for index, shard in enumerate(federation.shards):
        mine = federation.records.select(shard.indices)
        kept = RunFolder(federation.home(index).runs).before(view.id, study.training.rounds + 1)
        made = Bench(study, shard.name, workbench, mine).personal(sent, kept)
        if made is not None:
            # A personal adapter is for nobody else's records.
            found = scores(made.weights, own.get(shard.name, _NONE))
            personal[shard.name] = Had(own=_mean(found), whole=None)
    return shared, personal


def _own(test: Path, partition: str) -> dict[str, Indices]:
    """Each site's test records, where the partition is by a column."""
    kind, _, column = partition.partition(":")
    if kind != "column":
        return {}
    names = np.array(list(map(str, tabular.read(test).columns[column])))
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


def _mean(scores: npt.NDArray[np.float32]) -> float | None:
    return float(scores.astype(float).mean()) if len(scores) else None


def scores_of(parts: Sequence[Part], results: Sequence[Result | None]) -> SiteScores:
    """What each site had alone, shared (by the first federation that has it) and personal."""
    scores: dict[str, dict[tuple[str, int], Had]] = {ALONE: {}, SHARED: {}}
    for part, result in zip(parts, results, strict=True):
        if result is None:
            continue
        for site, had in result.shared.items():
            way = SHARED if part.site is None else ALONE
            scores[way].setdefault(_key(part, site), had)
        for site, had in result.personal.items():
            scores.setdefault(part.cell.variant, {})[_key(part, site)] = had
    return scores


def _key(part: Part, site: str) -> tuple[str, int]:
    """A site's name and the seed; the name tells the seed if other seeds deal out other sites."""
    seed, lasting = part.cell.seed, part.cell.partition.startswith("column:")
    return (site if lasting else f"{site} of seed {seed}"), seed
