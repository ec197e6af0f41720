"""Institutions that have joined a coordinator's database, with their keys; studies, decisions."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import Engine

from fedpact.client.agreements import Heard
from fedpact.client.correspondence import heard_of
from fedpact.common import identity
from fedpact.common.agreement import Decision, Kind
from fedpact.common.errors import AddressError
from fedpact.common.identity import Role, SigningKey
from fedpact.common.pact_messages import decision_message
from fedpact.common.study import Study
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.server import pact, pact_service
from fedpact.server.roles import COORDINATOR
from fedpact.server.tables import Institution, transaction

SECTORS = {"Hospital": "academia", "Maker": "industry", "Agency": "government"}


class Members:
    """Three data holders, a researcher and an auditor, as rows and keys."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.keys: dict[str, SigningKey] = {}
        for name, sector in SECTORS.items():
            self.join(name, sector)
        self.join("Lab", "academia", Role.RESEARCHER)
        self.join("Board", "government", Role.AUDITOR)

    def join(self, name: str, sector: str, role: Role = Role.DATA_HOLDER) -> None:
        self.keys[name] = identity.new_signing_key()
        now = datetime.now(UTC)
        with transaction(self.engine) as session:
            session.add(
                Institution(
                    name=name,
                    sector=sector,
                    role=role.value,
                    secret_sha256=f"{len(self.keys):064}",
                    invited_at=now,
                    expires_at=now,
                    joined_at=now,
                    signing_key=identity.public_bytes(self.keys[name]),
                )
            )

    def sign(self, name: str, kind: Kind, study: Study, **how: object) -> Decision:
        return Decision.make(self.keys[name], name, study.digest, kind, **how)

    def propose(self, study: Study, proposer: str = COORDINATOR) -> None:
        with transaction(self.engine) as session:
            pact.propose(session, study, proposer)

    def decide(self, name: str, kind: Kind, study: Study, **how: object) -> Decision:
        """An institution decides, and the coordinator takes it."""
        decision = self.sign(name, kind, study, **how)
        self.take(decision)
        return decision

    def take(self, decision: Decision) -> None:
        with transaction(self.engine) as session:
            pact.decide(session, decision)

    def all_approve(self, study: Study) -> None:
        for institution in study.institutions:
            self.decide(institution.name, "approve", study)

    def found(self, study: Study) -> pact.Proposal:
        with transaction(self.engine) as session:
            return pact.proposal(session, study.digest)


def pact_study(sectors: Mapping[str, str] = SECTORS, **governance: object) -> Study:
    """A study among these institutions."""
    return Study.model_validate(
        {
            "study": {"name": "triage"},
            "task": {"labels": ["mild", "severe"]},
            "model": {"base": "somewhere/bert"},
            "governance": governance,
            "institutions": [
                {"name": name, "sector": sector, "records": 100}
                for name, sector in sectors.items()
            ],
        }
    )


class NearPlane:
    """The control plane of a coordinator in this process: all of it but gRPC.

    Attributes:
        away: whether it cannot be reached.
    """

    def __init__(self, members: Members, name: str, role: Role = Role.DATA_HOLDER) -> None:
        self._engine, self._name, self._role = members.engine, name, role
        self.away = False
        self.taken: list[Decision] = []

    def studies(self) -> list[tuple[Study, Heard]]:
        self._reach()
        answer = pact_service.list_studies(self._engine, self._name, self._role)
        return [heard_of(state) for state in answer.studies]

    def decide(self, decision: Decision) -> None:
        self._reach()
        request = pb.DecideRequest(decision=decision_message(decision))
        pact_service.decide(self._engine, self._name, request)
        self.taken.append(decision)

    def _reach(self) -> None:
        if self.away:
            raise AddressError("The coordinator cannot be reached.")
