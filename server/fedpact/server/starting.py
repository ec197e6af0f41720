"""Starting a run: everything that can be wrong is found before a site is asked.

(1) The study is valid, its public test set at hand. (2) It is proposed, unless it was before.
(3) The coordinator is up. (4) The study is agreed, or is waited for. (5) The run is written
down, and SuperLink starts its process.
"""

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from fedpact.common import study as studies
from fedpact.common.errors import RunError, StudyError
from fedpact.common.study import Study
from fedpact.server import pact, runs
from fedpact.server.conduct import public_test_set
from fedpact.server.control import Control
from fedpact.server.home import ServerHome
from fedpact.server.resuming import begin
from fedpact.server.tables import transaction

_LOOK_SECONDS = 0.5


def propose(folder: Path, study_file: Path) -> Study:
    """Propose a study to the institutions that it names; the same one again changes nothing.

    Args:
        folder: the coordinator's.
        study_file: the study; its public test set is looked for beside it.

    Raises:
        StudyError: the study is not valid, names no institutions, or was taken back or ended.
        DataError: its public test set cannot be used.
        ModelError: its base model is not at hand.
        RunError: an institution has not joined, or is of another sector or role.
    """
    study = studies.load(study_file)
    if not study.institutions:
        raise StudyError(
            f"{study_file} names no institutions.",
            advice="Add an [[institutions]] entry for each that takes part.",
        )
    public_test_set(study, study_file.parent)
    with transaction(ServerHome(folder).open_database()) as session:
        pact.propose(session, study)
    return study


def start_run(
    folder: Path, study_file: Path, waiting: Callable[[str], None] | None = None
) -> str:
    """Start a run of a study once its institutions have signed it.

    Args:
        folder: the coordinator's.
        study_file: the study; its public test set is looked for beside it.
        waiting: told, once, for whom the run waits; without it a study that is not agreed
            is an error.

    Returns:
        the run's identifier.

    Raises:
        StudyError: as `propose`.
        DataError: as `propose`.
        ModelError: as `propose`.
        RunError: as `propose`, or the study is not agreed, or SuperLink refuses.
        AddressError: the coordinator is not up.
    """
    home = ServerHome(folder)
    study = propose(folder, study_file)
    engine = home.open_database()
    with Control.of(home) as control:
        if waiting is not None:
            _await_agreement(engine, study, waiting)
        with transaction(engine) as session:
            pact.start(session, study.digest)
        run = runs.create(engine, study, study_file.parent)
        begin(home, engine, control, run)
    return run


def _await_agreement(engine: Engine, study: Study, waiting: Callable[[str], None]) -> None:
    """Return once the study may run.

    Raises:
        RunError: it never will; the message says by whom and why.
    """
    told = False
    while True:
        with transaction(engine) as session:
            found = pact.proposal(session, study.digest)
        if found.standing.may_run:
            return
        if not pact.may_still_be_agreed(found):
            raise RunError(
                f"The study {study.study.name} cannot be run: {pact.why_not(found)}.",
                advice="Who said no may still approve; a changed study is proposed anew.",
            )
        if not told:
            waiting(_for_whom(found))
            told = True
        time.sleep(_LOOK_SECONDS)


def _for_whom(found: pact.Proposal) -> str:
    digest = found.study.digest[:12]
    lines = [f"The study {found.study.study.name} ({digest}) waits for:"]
    lines += [f"  {what}" for what in found.standing.missing]
    lines.append(f"A data holder types `fedpact client approve {digest}`.")
    if found.study.governance.auditor_consent:
        lines.append(f"An auditor types `fedpact client consent {digest}`.")
    lines.append("Ctrl-C stops waiting; what was signed stays signed.")
    return "\n".join(lines)
