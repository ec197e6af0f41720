"""Runs the cells of a comparison: those that have not ended, here or in several processes.

One bar shows the rounds of all of them; where there is no terminal, each cell that ends is a line.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import ClassVar, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedpact.common.errors import RunError
from fedpact.simulations import cells
from fedpact.simulations.cells import Cell, CellResult

_LOOK_SECONDS: Final = 0.2
_Ticks = SimpleQueue[tuple[str, int, float | None]]


class Bar:
    """The progress of a whole comparison.

    Args:
        console: where it is shown.
        rounds: of all cells together.
    """

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("Comparing", total=rounds)
        self._done: dict[str, int] = {}

    def tick(self, cell: Cell, done: int, score: float | None) -> None:
        """A cell has done some of its rounds, and its newest score is this."""
        self._done[cell.identity] = done
        said = "" if score is None else f", {_scored(cell, score)}"
        self._progress.update(
            self._task,
            completed=sum(self._done.values()),
            description=f"{cell.variant}, seed {cell.seed}{said}",
        )

    def ended(self, cell: Cell, result: CellResult) -> None:
        """A cell has ended; one that failed counts with all its rounds."""
        self.tick(cell, cell.study.training.rounds, result.score)
        if result.status == "failed" or not self._console.is_terminal:
            how = result.reason or _scored(cell, result.score)
            line = f"{cell.variant}, seed {cell.seed}: {result.status}, {how}"
            self._console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator["Bar"]:
        """Show it for the block."""
        with self._progress:
            yield self


def _scored(cell: Cell, score: float | None) -> str:
    return "" if score is None else f"{cell.metric} {score:.4f}"


def run(planned: Sequence[Cell], folder: Path, jobs: int, bar: Bar) -> list[CellResult]:
    """Run cells; those that ended before are not run again.

    Args:
        planned: which.
        folder: in which their folders are.
        jobs: in how many processes, which share the cores out; 1 is this one alone.
        bar: told of each round.

    Returns:
        their results, in the same order.

    Raises:
        RunError: one of the processes was killed.
        StorageError: nothing can be written.
    """
    results = {c.identity: r for c in planned if (r := cells.ended(c, folder)) is not None}
    for cell in planned:
        if cell.identity in results:
            bar.ended(cell, results[cell.identity])
    waiting = [cell for cell in planned if cell.identity not in results]
    jobs = min(jobs, len(waiting))
    ran = _apart(waiting, folder, jobs, bar) if jobs > 1 else _here(waiting, folder, bar)
    for cell, result in ran:
        results[cell.identity] = result
        bar.ended(cell, result)
    return [results[cell.identity] for cell in planned]


def _here(waiting: Sequence[Cell], folder: Path, bar: Bar) -> Iterator[tuple[Cell, CellResult]]:
    for cell in waiting:

        def tick(done: int, score: float | None, cell: Cell = cell) -> None:
            bar.tick(cell, done, score)

        yield cell, cells.run(cell, folder, tick)


def _apart(
    waiting: Sequence[Cell], folder: Path, jobs: int, bar: Bar
) -> Iterator[tuple[Cell, CellResult]]:
    context = get_context("spawn")  # torch's threads do not outlive a fork
    ticks: _Ticks = context.SimpleQueue()
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    named = {cell.identity: cell for cell in waiting}
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_Worker.begin, initargs=(ticks, threads)
    )
    running = {pool.submit(_Worker.run, cell, folder): cell for cell in waiting}
    try:
        while running:
            ended, _ = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            while not ticks.empty():
                identity, done, score = ticks.get()
                bar.tick(named[identity], done, score)
            for future in ended:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "A process of the comparison was killed; perhaps memory was short.",
            advice="The same command goes on where it was; take fewer --jobs.",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """What a process of a comparison keeps."""

    ticks: ClassVar[_Ticks]

    @classmethod
    def begin(cls, ticks: _Ticks, threads: int) -> None:
        import torch

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        cls.ticks = ticks

    @classmethod
    def run(cls, cell: Cell, folder: Path) -> CellResult:
        def tick(done: int, score: float | None) -> None:
            cls.ticks.put((cell.identity, done, score))

        return cells.run(cell, folder, tick)
