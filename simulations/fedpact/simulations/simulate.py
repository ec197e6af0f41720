"""`fedpact simulate`: a study among simulated sites, in one process or on Ray."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import typer
from rich.console import Console
from sqlalchemy import Engine

from fedpact.common import folder_lock
from fedpact.common import study as studies
from fedpact.common.database import disk_errors, open_database, sqlite_url
from fedpact.common.errors import UsageError
from fedpact.common.study import Study
from fedpact.common.worth import read_worth
from fedpact.common.worth import table as worth_table
from fedpact.server import app as server_app
from fedpact.server import runs
from fedpact.server.conduct import conduct
from fedpact.server.home import MIGRATIONS
from fedpact.server.results import RunResult, overview
from fedpact.server.round_needs import Terms
from fedpact.simulations.federation import Federation, deal, find_data, seeded_workbench
from fedpact.simulations.grid import Answer, InProcessGrid


@dataclass(frozen=True)
class Simulation:
    """What `fedpact simulate` was asked."""

    study: Path
    data: Path | None = None
    sites: int | None = None
    partition: str = "iid"
    seed: int = 0
    grid: str = "process"
    folder: Path | None = None
    alone: Literal["no", "plain", "dp"] = "no"
    test: Path | None = None


def run_simulation(asked: Simulation, *, as_json: bool) -> RunResult:
    """Run a simulation and print its result.

    Raises:
        FedpactError: why it cannot run.
    """
    console = Console(stderr=True)
    result, view = simulate(asked, console)
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        Console().print(overview(view))
        if (worth := read_worth(Path(view.adapter).parent.parent)) is not None:
            Console().print(worth_table(worth))
    return result


def simulate(asked: Simulation, console: Console) -> tuple[RunResult, runs.RunView]:
    """Run a simulation.

    Returns:
        its result, and the run as it was written down.

    Raises:
        FedpactError: why it cannot run.
    """
    if asked.test is not None and asked.alone == "no":
        raise UsageError(
            "--test is for --alone, which is not there.",
            advice="Add --alone plain or --alone dp.",
        )
    study = studies.load(asked.study)
    folder = asked.folder or _new_folder(study.study.name)
    data = asked.data or find_data(asked.study, study)
    with _claimed(folder):
        return _simulate(asked, study, data, folder, console)


def _simulate(
    asked: Simulation, study: Study, data: Path, folder: Path, console: Console
) -> tuple[RunResult, runs.RunView]:
    with console.status(f"Reading {data}"):
        federation = deal(
            study, data, asked.partition, asked.sites, asked.seed, folder / "sites"
        )
        federation.prepare()
    engine = open_coordinator(folder)
    run = runs.create(engine, federation.study, asked.study.parent)
    artifacts = folder.resolve() / "artifacts"
    with console.status(f"Run {run}"):
        if asked.grid == "ray":
            from fedpact.simulations.ray import conduct_on_ray

            conduct_on_ray(engine, run, federation, artifacts, asked.seed)
        else:
            conduct_here(engine, run, federation, artifacts, asked.seed)
    view = runs.view(engine, run)
    if asked.alone != "no":
        from fedpact.simulations.worth import write_worth

        with console.status("Training each site alone"):
            write_worth(
                federation,
                view,
                asked.test,
                asked.partition,
                asked.study.parent,
                folder,
                private=asked.alone == "dp",
                seed=asked.seed,
            )
    return RunResult.of(view), view


def open_coordinator(folder: Path) -> Engine:
    """The database of a simulated coordinator, which begins anew if the power fails."""
    url = sqlite_url(folder.resolve() / "fedpact.db")
    return open_database(url, MIGRATIONS, durable=False)


def conduct_here(
    engine: Engine,
    run: str,
    federation: Federation,
    artifacts: Path,
    seed: int,
    around: Callable[[int, Answer], Answer] = lambda _, answer: answer,
) -> None:
    """Conduct a run with every site in this process.

    Args:
        engine: the coordinator's database, in which the run was created.
        run: the run's identifier.
        federation: the sites.
        artifacts: the folder for adapters.
        seed: of sampling and noise.
        around: what stands between a site (by its index) and the coordinator.

    Raises:
        FedpactError: why the run cannot go on.
    """
    workbench = seeded_workbench(seed)
    sites = [federation.site(i, workbench) for i in range(len(federation.shards))]
    grid = InProcessGrid({i: around(i, site.answer) for i, site in enumerate(sites)})
    nodes = {site.name: i for i, site in enumerate(sites)}
    conduct(
        engine,
        run,
        server_app.GridExchange(grid, nodes),
        artifacts,
        partial(Terms.all_of, federation.study),
        workbench.model(federation.study).module,
        np.random.default_rng(seed),
    )


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """A folder for one simulation alone: two at a time would write into each other's database.

    Raises:
        UsageError: another process simulates in it, or it is not empty.
        StorageError: it cannot be made.
    """
    lock = folder / "simulate.lock"

    def taken() -> UsageError:
        return UsageError(
            f"Another process simulates in {folder}.", advice="Name another --folder."
        )

    if not lock.exists():
        _require_empty(folder)  # so that a folder of something else gets no lock of ours
    with disk_errors():
        folder.mkdir(parents=True, exist_ok=True)
    with folder_lock.hold(lock, taken):
        _require_empty(folder, but=lock)
        yield


def _require_empty(folder: Path, but: Path | None = None) -> None:
    if folder.exists() and any(path != but for path in folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", advice="Name another --folder.")


def _new_folder(name: str) -> Path:
    return Path("fedpact-simulations") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
