"""Starting a run: everything that can be wrong is found before a site is asked."""

from pathlib import Path

from fedpact.common import study as studies
from fedpact.common.errors import RunError, StudyError
from fedpact.server import institutions, runs
from fedpact.server.conduct import public_test_set
from fedpact.server.control import Control
from fedpact.server.fab import HOME_KEY, RUN_KEY, build_fab
from fedpact.server.home import ServerHome


def start_run(folder: Path, study_file: Path) -> str:
    """Write a run down and have SuperLink start its process.

    Args:
        folder: the coordinator's.
        study_file: the study; its public test set is looked for beside it.

    Returns:
        the run's identifier.

    Raises:
        StudyError: the study is not valid or names no institutions.
        DataError: its public test set cannot be used.
        ModelError: its base model is not at hand.
        RunError: an institution has not joined, or SuperLink refuses.
        AddressError: the coordinator is not up.
    """
    home = ServerHome(folder)
    study = studies.load(study_file)
    if not study.institutions:
        raise StudyError(
            f"{study_file} names no institutions.",
            advice="Add an [[institutions]] entry for each that takes part.",
        )
    public_test_set(study, study_file.parent)
    engine = home.open_database()
    names = {institution.name for institution in study.institutions}
    if missing := sorted(names - institutions.node_ids(engine, names).keys()):
        raise RunError(
            f"{', '.join(missing)} has not joined.",
            advice="`fedpact server invite` makes a token, `fedpact client join` uses it.",
        )
    with Control.of(home) as control:
        run = runs.create(engine, study, study_file.parent)
        try:
            number = control.start_run(build_fab(), {HOME_KEY: str(home.folder), RUN_KEY: run})
        except RunError as error:
            runs.set_status(engine, run, "failed", str(error))
            raise
    runs.set_flower_run(engine, run, number)
    return run
