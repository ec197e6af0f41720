"""The control plane's calls about studies: from messages to `fedpact.server.pact` and back.

Each takes who calls, as the call's signature proved. A study that does not concern the caller
is to it as one that was never proposed.
"""

from collections.abc import Sequence

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from fedpact.common import pact_messages
from fedpact.common.errors import StudyError, TrustError
from fedpact.common.identity import Role
from fedpact.common.study import Study
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.server import pact, runs
from fedpact.server.pact import Proposal
from fedpact.server.results import RunResult
from fedpact.server.tables import transaction


def propose(engine: Engine, proposer: str, request: pb.ProposeRequest) -> pb.StudyState:
    """Propose a study.

    Raises:
        StudyError: it is not a study, or was taken back or ended.
        RunError: an institution that it names has not joined as it says.
    """
    study = Study.from_canonical(request.study)
    with transaction(engine) as session:
        pact.propose(session, study, proposer)
        return _state(pact.proposal(session, study.digest))


def list_studies(engine: Engine, institution: str, role: Role) -> pb.ListStudiesResponse:
    """The studies that concern the caller, the newest first."""
    with transaction(engine) as session:
        found = pact.list_for(session, institution, role)
    return pb.ListStudiesResponse(studies=map(_state, found))


def get_study(engine: Engine, institution: str, role: Role, digest: str) -> pb.StudyState:
    """One study.

    Raises:
        StudyError: there is none with this digest that concerns the caller.
    """
    with transaction(engine) as session:
        return _state(_of_concern(session, institution, role, digest))


def decide(engine: Engine, institution: str, request: pb.DecideRequest) -> pb.StudyState:
    """Take the caller's decision.

    Raises:
        WireError: it is not a decision.
        TrustError: it is another's, or as `pact.decide`.
        StudyError: as `pact.decide`.
    """
    decision = pact_messages.decision_of(request.decision)
    if decision.institution != institution:
        raise TrustError(f"The decision is of {decision.institution}, the call is not.")
    with transaction(engine) as session:
        pact.decide(session, decision)
        return _state(pact.proposal(session, decision.study_digest))


def get_results(
    engine: Engine, institution: str, role: Role, digest: str
) -> pb.GetResultsResponse:
    """The runs of a study, the newest first, as JSON.

    Raises:
        StudyError: there is no study with this digest that concerns the caller.
    """
    with transaction(engine) as session:
        _of_concern(session, institution, role, digest)
    views = [view for view in runs.list_runs(engine) if view.study.digest == digest]
    return pb.GetResultsResponse(results=_as_json([RunResult.of(view) for view in views]))


def _of_concern(session: Session, institution: str, role: Role, digest: str) -> Proposal:
    found = pact.proposal(session, digest)
    if not pact.concerns(found, institution, role):
        raise StudyError(f"The study {digest[:12]} was never proposed.")
    return found


def _state(found: Proposal) -> pb.StudyState:
    return pb.StudyState(
        study=found.study.canonical(),
        study_digest=found.study.digest,
        state=found.standing.state,
        proposer=found.proposer,
        proposed_at=found.proposed_at.isoformat(),
        decisions=map(pact_messages.decision_message, found.decisions),
        missing=found.standing.missing,
    )


def _as_json(results: Sequence[RunResult]) -> str:
    return f"[{', '.join(result.model_dump_json() for result in results)}]"
