"""A live view of a run: read from the database until the run has ended."""

import time

from rich.console import Console
from rich.live import Live
from sqlalchemy import Engine

from fedpact.server import runs
from fedpact.server.home import ServerHome
from fedpact.server.liveness import settle
from fedpact.server.results import overview
from fedpact.server.runs import RunView

_LOOK_SECONDS = 0.5
_ROUNDS_SHOWN = 12


def watch(
    home: ServerHome, engine: Engine, run: str, console: Console | None = None
) -> RunView:
    """Show a run while it goes on; on a console that is no terminal, a line a round.

    Args:
        home: the coordinator's folder.
        engine: its database.
        run: which run.
        console: where to show it; standard error by default.

    Returns:
        the run as it ended.

    Raises:
        RunError: there is no such run.
    """
    console = console or Console(stderr=True)
    view = settle(home, engine, runs.view(engine, run))
    with Live(overview(view, last=_ROUNDS_SHOWN), console=console, transient=True) as live:
        printed = 0
        while view.is_under_way:
            time.sleep(_LOOK_SECONDS)
            view = settle(home, engine, runs.view(engine, run))
            live.update(overview(view, last=_ROUNDS_SHOWN))
            if not console.is_terminal:
                printed = _print_new(console, view, printed)
    return view


def _print_new(console: Console, view: RunView, printed: int) -> int:
    """One line for each round that has ended since."""
    done = [r for r in view.rounds if r.seconds is not None]
    for r in done[printed:]:
        updates = sum(a.state == "updated" for a in r.answers.values())
        console.print(
            f"round {r.number}/{view.study.training.rounds}: {updates} updates, "
            f"{r.seconds or 0:.1f} s"
        )
    return len(done)
