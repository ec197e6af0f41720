"""One cell of a comparison: one variant with one seed, a simulation in a folder of its own.

A cell that ended is written down in `cell.json`, whole or not at all, and is not run again. What
a killed process left of one is removed. The cell's folder keeps the run's database and adapter;
the sites' own folders and each round's artifacts go, for a grid would fill the disk with them.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Engine

from fedpact.common import tabular, wire
from fedpact.common.adapter import ADAPTER
from fedpact.common.database import disk_errors
from fedpact.common.errors import FedpactError, UsageError
from fedpact.common.study import Study
from fedpact.common.version import fedpact_version
from fedpact.server import runs
from fedpact.server.results import CentralResult, RunResult
from fedpact.simulations.attacks import Attack, Conspiracy
from fedpact.simulations.federation import deal
from fedpact.simulations.grid import Answer
from fedpact.simulations.simulate import conduct_here, open_coordinator

Tick = Callable[[int, float | None], None]
"""Told, after each round, how many are done and the newest score."""


@dataclass(frozen=True)
class Cell:
    """What a cell runs.

    Attributes:
        variant: the variant's name.
        study: with the variant's values and the cell's seed; its institutions give way.
        folder_of_study: where the study's public test set is.
        data: the data file that is dealt out.
        partition: how.
        sites: to how many; None takes a column's values.
        seed: of partition, sampling, noise and the adapter's first values.
        attack: what bad sites do, if there are any.
        measure: which of the task's measures of the public test set is the score, such as
            `micro_f1`; empty takes the mean of the records' scores.
    """

    variant: str
    study: Study
    folder_of_study: Path
    data: Path
    partition: str
    sites: int | None
    seed: int
    attack: str = ""
    measure: str = ""

    @property
    def metric(self) -> str:
        """What its score is called."""
        return (self.measure or self.study.task.kind.score).replace("_", " ")

    @property
    def identity(self) -> str:
        """SHA-256 of all that the result depends on, but for the machine."""
        study = self.study
        files = [self.data, self.folder_of_study / (study.evaluation.data or "")]
        if (start := study.adapter.start_beside(self.folder_of_study)) is not None:
            files.append(start / ADAPTER)
        parts = (
            *(fedpact_version(), self.variant, study.canonical(), self.partition),
            *(str(self.sites), str(self.seed), self.attack, self.measure),
            *map(tabular.content_digest, files),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The name of its folder."""
        word = re.sub(r"[^\w.=-]+", "_", self.variant)[:60]
        return f"{word}-seed{self.seed}-{self.identity[:8]}"


class CellRound(BaseModel):
    """One round of a cell."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    round: int
    """Its number, from 1."""
    score: float | None
    """On the public test set, after the round: the higher, the better."""
    loss: float | None
    """On the public test set, after the round."""
    seconds: float
    """How long it took, all sites one after the other."""
    bytes_in: int
    """What all sites received."""
    bytes_out: int
    """What all sites sent."""
    updates: int
    """Sites whose update counted."""
    epsilon: float | None
    """ε so far at δ, the largest of all sites; None without DP."""
    averaging_loss: float | None
    """What averaging A and B apart loses of the mean of BA, as a share of it."""
    mean_cosine: float | None
    """The mean cosine between two sites' updates."""


class CellResult(BaseModel):
    """How a cell ended."""

    model_config = ConfigDict(frozen=True)

    identity: str
    variant: str
    seed: int
    status: Literal["completed", "failed"]
    reason: str = ""
    sites: int = 0
    rounds: tuple[CellRound, ...] = ()
    delta: float
    unit: str
    metric: str
    central: CentralResult | None = None
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """The score after the last round."""
        return self.rounds[-1].score if self.rounds else None


def ended(cell: Cell, folder: Path) -> CellResult | None:
    """The result of a cell that has been run to its end already."""
    try:
        text = (folder / cell.name / "cell.json").read_text(encoding="utf-8")
        result = CellResult.model_validate_json(text)
    except (OSError, ValidationError):
        return None
    same = result.identity == cell.identity
    return result if same and result.status == "completed" else None


def run(cell: Cell, folder: Path, tick: Tick) -> CellResult:
    """Run a cell from its beginning, unless it has ended already.

    Args:
        cell: what to run.
        folder: in which its own folder is.
        tick: told of each round.

    Returns:
        its result; a cell that fails says why.

    Raises:
        StorageError: nothing can be written.
    """
    if (result := ended(cell, folder)) is not None:
        return result
    home = folder / cell.name
    with disk_errors():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
    try:
        result = _simulated(cell, home, tick)
    except FedpactError as error:
        result = CellResult(**_head(cell), status="failed", reason=str(error))
    with disk_errors():
        partial = home / "cell.json.partial"
        partial.write_text(result.model_dump_json(indent=2), encoding="utf-8")
        partial.replace(home / "cell.json")
    return result


def _head(cell: Cell) -> dict[str, object]:
    study = cell.study
    return {
        "identity": cell.identity,
        "variant": cell.variant,
        "seed": cell.seed,
        "delta": study.privacy.target_delta,
        "unit": study.unit,
        "metric": cell.metric,
    }


def _simulated(cell: Cell, home: Path, tick: Tick) -> CellResult:
    began = time.monotonic()
    federation = deal(
        cell.study, cell.data, cell.partition, cell.sites, cell.seed, home / "sites"
    )
    around: Callable[[int, Answer], Answer] = _honest
    if cell.attack:
        attack = Attack.parse(cell.attack)
        federation = attack.on_labels(federation)
        around = Conspiracy(attack, len(federation.shards), cell.seed).around
    federation.prepare()
    engine = open_coordinator(home)
    run_id = runs.create(engine, federation.study, cell.folder_of_study)
    meter = _Meter(len(federation.shards))

    def watched(index: int, answer: Answer) -> Answer:
        answer = around(index, answer)
        return meter.around(answer, lambda done: tick(done, _newest(cell, engine, run_id)))

    try:
        conduct_here(engine, run_id, federation, home / "artifacts", cell.seed, watched)
        view = runs.view(engine, run_id)
    finally:
        engine.dispose()
    tick(len(view.rounds), _score(cell, view.rounds[-1]))
    _tidy(home)
    result = RunResult.of(view)
    rounds = tuple(
        CellRound(
            round=r.number,
            score=_score(cell, r),
            loss=r.loss,
            seconds=r.seconds or 0.0,
            bytes_in=meter.received[r.number - 1],
            bytes_out=meter.sent[r.number - 1],
            updates=sum(answer.state == "updated" for answer in r.answers.values()),
            epsilon=max((a.epsilon for a in r.answers.values() if a.epsilon), default=None),
            averaging_loss=r.diagnosis.averaging_loss,
            mean_cosine=r.diagnosis.mean_cosine,
        )
        for r in view.rounds
    )
    return CellResult(
        **_head(cell),
        status="completed",
        sites=len(federation.shards),
        rounds=rounds,
        central=result.central,
        seconds=time.monotonic() - began,
    )


def _honest(_index: int, answer: Answer) -> Answer:
    return answer


class _Meter:
    """Counts what goes in and out of sites, round by round; every site is asked in every round."""

    def __init__(self, sites: int) -> None:
        self._sites = sites
        self._answered = 0
        self.received: list[int] = []
        self.sent: list[int] = []

    def around(self, answer: Answer, round_begins: Callable[[int], None]) -> Answer:
        """A site's answer with a meter before it; `round_begins` hears how many are done."""

        def metered(packet: wire.Packet) -> wire.Packet:
            done, within = divmod(self._answered, self._sites)
            if within == 0:
                self.received.append(0)
                self.sent.append(0)
                round_begins(done)
            self._answered += 1
            reply = answer(packet)
            self.received[done] += packet.size
            self.sent[done] += reply.size
            return reply

        return metered


def _newest(cell: Cell, engine: Engine, run: str) -> float | None:
    scores = [_score(cell, r) for r in runs.view(engine, run).rounds]
    return next((score for score in reversed(scores) if score is not None), None)


def _score(cell: Cell, measured: runs.RoundView) -> float | None:
    """What a round comes to in the cell's measure; None if it was not measured."""
    if not cell.measure or measured.accuracy is None:
        return measured.accuracy
    if cell.measure not in measured.metrics:
        known = ", ".join(measured.metrics) or f"{cell.study.task.kind.score} alone"
        raise UsageError(f"{cell.study.task.name} measures {known}, not {cell.measure}.")
    return measured.metrics[cell.measure]


def _tidy(home: Path) -> None:
    """Keep the database and the adapter alone."""
    with disk_errors():
        shutil.rmtree(home / "sites")
        for artifact in (home / "artifacts").glob("*.safetensors"):
            artifact.unlink()
