"""Going on with a run at the round it was in, whatever ended it there.

What has come of the rounds before is kept: the adapter, the server optimiser's state, the norm that
updates are clipped to. Sites that have answered that round already give the same bytes again:
it costs none of them twice.
"""

from pathlib import Path

from sqlalchemy import Engine

from fedpact.common.errors import RunError
from fedpact.server import pact, runs
from fedpact.server.control import Control
from fedpact.server.fab import HOME_KEY, RUN_KEY, build_fab
from fedpact.server.home import ServerHome
from fedpact.server.liveness import settle
from fedpact.server.runs import RunView
from fedpact.server.tables import transaction


def resume_run(folder: Path, run: str) -> RunView:
    """Have a run that was interrupted or has failed go on at the round it was in.

    Args:
        folder: the coordinator's.
        run: the run's identifier.

    Returns:
        the run as it stands.

    Raises:
        RunError: there is no such run, it did not end that way, its study is not agreed any
            more, or SuperLink refuses.
        AddressError: the coordinator is not up.
    """
    home = ServerHome(folder)
    engine = home.open_database()
    settle(home, engine, runs.view(engine, run))
    with Control.of(home) as control:
        return go_on(home, engine, control, run)


def go_on(
    home: ServerHome, engine: Engine, control: Control, run: str, *, keep_stop: bool = False
) -> RunView:
    """The same, where SuperLink is at hand; as `runs.resume` if it was asked to stop."""
    study, _ = runs.study_of(engine, run)
    with transaction(engine) as session:
        pact.start(session, study.digest)
    runs.resume(engine, run, keep_stop=keep_stop)
    begin(home, engine, control, run)
    return runs.view(engine, run)


def begin(home: ServerHome, engine: Engine, control: Control, run: str) -> None:
    """Have SuperLink start the process of a run that waits.

    Raises:
        RunError: SuperLink refuses; the run has failed.
    """
    try:
        number = control.start_run(build_fab(), {HOME_KEY: str(home.folder), RUN_KEY: run})
    except RunError as error:
        runs.set_status(engine, run, "failed", str(error))
        raise
    runs.set_flower_run(engine, run, number)
