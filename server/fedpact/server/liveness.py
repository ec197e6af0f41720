"""Whether a run that is written down as under way still is.

A run's process can be killed before it writes down its end. Whoever looks at a run asks
here first, so that a dead run never merely looks slow.
"""

import os
from pathlib import Path

from sqlalchemy import Engine

from fedpact.common.errors import AddressError, RunError
from fedpact.server import runs
from fedpact.server.control import Control
from fedpact.server.home import ServerHome
from fedpact.server.runs import RunView


def settle(home: ServerHome, engine: Engine, view: RunView) -> RunView:
    """Write down the end of a run whose process is gone, and return the run as it is.

    Args:
        home: the coordinator's folder, on this machine.
        engine: its database.
        view: the run as it was written down.
    """
    if not view.is_under_way:
        return view
    if view.process is not None and not _is_alive(view.process):
        message = f"The run's process ended in round {len(view.rounds)}, without a word."
        return _end(engine, view, "interrupted", message)
    if view.process is None and view.flower_run:
        try:
            with Control.of(home) as control:
                flower = control.run_status(int(view.flower_run))
        except (AddressError, RunError):
            return view
        if flower.is_finished:
            message = f"SuperLink could not start the run: {flower.details or 'see its log'}"
            return _end(engine, view, "failed", message)
    return view


def _end(engine: Engine, view: RunView, status: str, message: str) -> RunView:
    # Refused if it has ended in the meantime, as it should.
    runs.set_status(engine, view.id, status, message)
    return runs.view(engine, view.id)


def _is_alive(process: int) -> bool:
    """Whether a process runs; one that was killed and that nobody has reaped does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux, or it ended just now
        return True
    # The command's name stands in parentheses and may contain anything.
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}
