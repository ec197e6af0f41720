"""An institution's correspondence with its coordinator: who we are, what we sign with, whom we ask.

Here the envoy is put together from an institution's folder; the daemon keeps it visiting, the
command line sends it once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import ValidationError

from fedpact.client.accounts import Accounts
from fedpact.client.agreements import Agreements, Heard, Shown
from fedpact.client.envoy import Envoy
from fedpact.client.heads import Heads
from fedpact.client.home import ClientHome
from fedpact.client.join import load_site
from fedpact.client.service import Service
from fedpact.client.summary import left_to_a_person
from fedpact.common.agreement import KINDS, Decision, Kind
from fedpact.common.errors import AddressError, UsageError, WireError
from fedpact.common.identity import Role
from fedpact.common.pact_messages import decision_message, decision_of
from fedpact.common.study import Study
from fedpact.common.v1 import federation_pb2 as pb


class ControlPlane:
    """The envoy's `Coordinator`, over gRPC.

    Each call is a connection of its own, with the keys that the folder has by then: they may
    have been changed while the daemon serves.

    Args:
        home: of an institution that has joined.
    """

    def __init__(self, home: ClientHome) -> None:
        self._home = home

    def studies(self) -> Sequence[tuple[Study, Heard]]:
        """The studies that concern this institution.

        Raises:
            FedpactError: as `Service.federation`; WireError if they are not studies.
        """
        with Service.of(self._home) as service:
            answer = service.federation.ListStudies(pb.ListStudiesRequest())
        return [heard_of(state) for state in answer.studies]

    def decide(self, decision: Decision) -> None:
        """Give the coordinator a decision.

        Raises:
            FedpactError: as `Service.federation`, or why it does not take the decision.
        """
        with Service.of(self._home) as service:
            service.federation.Decide(pb.DecideRequest(decision=decision_message(decision)))

    def propose(self, study: Study) -> tuple[Study, Heard]:
        """Propose a study; it, and how it stands.

        Raises:
            FedpactError: as `Service.federation`, or why it cannot be proposed.
        """
        request = pb.ProposeRequest(study=study.canonical())
        with Service.of(self._home) as service:
            return heard_of(service.federation.Propose(request))

    def results(self, digest: str) -> str:
        """The runs of a study, as JSON.

        Raises:
            FedpactError: as `Service.federation`, or the study does not concern us.
        """
        request = pb.GetResultsRequest(study_digest=digest)
        with Service.of(self._home) as service:
            return str(service.federation.GetResults(request).results)


@dataclass(frozen=True)
class Desk:
    """Where an institution reads what it is asked, and signs.

    Attributes:
        home: its folder.
        institution: its name, as studies name it.
        role: what it does in the federation.
        agreements: what was shown and signed here.
        plane: the coordinator.
        envoy: goes there.
    """

    home: ClientHome
    institution: str
    role: Role
    agreements: Agreements
    plane: ControlPlane
    envoy: Envoy

    @classmethod
    def of(cls, home: ClientHome) -> Self:
        """The desk of an institution that has joined.

        Raises:
            TrustError: it has not joined, or a key or certificate cannot be used.
            StorageError: its database cannot be opened.
        """
        site = load_site(home)
        engine, plane = home.open_database(), ControlPlane(home)
        agreements = Agreements(engine)
        envoy = Envoy(
            site.institution,
            lambda: load_site(home).signing_key,
            agreements,
            plane,
            lambda study: left_to_a_person(home, study, site.institution),
            lambda: _report(Heads(home, engine), Accounts(home, engine), site.role),
        )
        return cls(home, site.institution, site.role, agreements, plane, envoy)

    def catch_up(self) -> str:
        """Send what waits, fetch what is new; why not, if the coordinator is away.

        Raises:
            FedpactError: as `Service.federation`, but for an AddressError.
        """
        try:
            self.envoy.send()
            self.envoy.listen()
        except AddressError as error:
            return error.message
        return ""

    def decide(self, study: Study, kind: Kind, reason: str = "") -> str:
        """Sign a decision, write it down here, and send it; why it waits, if it does.

        Raises:
            UsageError: this institution's role does not decide so.
            StorageError: it could not be written down, and does not hold.
            FedpactError: the coordinator does not take it; it holds here all the same.
        """
        if kind not in KINDS[self.role]:
            raise UsageError(
                f"As {self.role}, {self.institution} cannot {kind} a study.",
                advice=_INSTEAD.get(self.role, ""),
            )
        key, who = self.envoy.key(), self.institution
        decision = self.agreements.decide(key, who, study, kind, reason)
        try:
            self.envoy.deliver(decision)
        except AddressError as error:
            return error.message
        return ""

    def propose(self, study: Study) -> Shown:
        """Propose a study, and keep it as one that was shown.

        Raises:
            FedpactError: as `Service.federation`, or why it cannot be proposed.
        """
        self.agreements.hear(*self.plane.propose(study))
        return self.agreements.find(study.digest)


def _report(heads: Heads, accounts: Accounts, role: Role) -> bool:
    """State our ledger, and show our transcript's head; whether there was anything new.

    The statement goes first: where the connection breaks, there still is something to show, and
    both go again.
    """
    if not heads.has_news():
        return False
    if role is Role.DATA_HOLDER:
        accounts.submit()
    return heads.exchange()


_INSTEAD = {
    Role.DATA_HOLDER: "A data holder approves, refuses or withdraws.",
    Role.AUDITOR: "An auditor consents or vetoes.",
}


def heard_of(state: pb.StudyState) -> tuple[Study, Heard]:
    """A study as the coordinator shows it.

    Raises:
        StudyError: it is not a study.
        WireError: what is said of it is not whole.
    """
    study = Study.from_canonical(state.study)
    fields = {
        "proposer": state.proposer,
        "proposed_at": state.proposed_at,
        "state": state.state,
        "missing": tuple(state.missing),
        "decisions": tuple(map(decision_of, state.decisions)),
    }
    try:
        return study, Heard.model_validate(fields)
    except ValidationError as error:
        raise WireError("What the coordinator says of a study is not whole.") from error
