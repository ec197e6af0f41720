"""The pact as the coordinator keeps it: proposals, decisions, and how each study stands.

Rules, held here:

1. A study is proposed only to institutions that have joined, in the sector that it names them
   in. Every changed byte is another study.
2. A decision counts only if the institution's registered key signed it, its role may decide so,
   and it is newer than the institution's last: an old signature cannot be shown again.
3. Decisions are only ever added. How a study stands is computed from them each time, by the
   rule that sites and auditors use too (`fedpact.common.agreement`).
4. What an institution signed before it was shut out and invited anew does not count.

Functions that change something leave the commit to the caller, where it is a visible line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from fedpact.common import agreement, identity
from fedpact.common.agreement import Decision, Standing
from fedpact.common.errors import RunError, StudyError, TrustError
from fedpact.common.identity import Role
from fedpact.common.study import Study
from fedpact.common.study_parties import Institution as Participant
from fedpact.common.transcript_store import write
from fedpact.server.pact_tables import DecisionRow, ProposalRow
from fedpact.server.roles import COORDINATOR
from fedpact.server.round_needs import Terms
from fedpact.server.tables import Institution, transaction

_ANY_AUDITOR = "an auditor"
# How far another institution's clock may be ahead of ours.
_CLOCKS_DIFFER = timedelta(minutes=5)
_STUDIES = "`fedpact run studies` shows those that were proposed."


@dataclass(frozen=True)
class Proposal:
    """A study that was proposed, and how it stands.

    Attributes:
        study: every byte of it.
        proposer: the institution, or `coordinator`.
        proposed_at: when.
        decisions: all that count, in the order in which they came.
        standing: what the study's rule makes of them.
    """

    study: Study
    proposer: str
    proposed_at: datetime
    decisions: tuple[Decision, ...]
    standing: Standing


def propose(session: Session, study: Study, proposer: str = COORDINATOR) -> None:
    """Propose a study to the institutions that it names; the same one again changes nothing.

    Args:
        session: the caller commits.
        study: what is proposed.
        proposer: the institution, or `coordinator`.

    Raises:
        StudyError: it names no institutions, or it was taken back or ended.
        RunError: an institution has not joined, or is of another sector or role.
    """
    if not study.institutions:
        raise StudyError(
            "The study names no institutions.",
            advice="Add an [[institutions]] entry for each that takes part.",
        )
    for participant in study.institutions:
        _require_joined(session, participant)
    row = session.get(ProposalRow, study.digest)
    if row is not None:
        _require_open(row)
        return
    session.add(
        ProposalRow(
            digest=study.digest,
            name=study.study.name,
            document=study.canonical(),
            proposer=proposer,
            proposed_at=datetime.now(UTC),
        )
    )
    session.flush()
    write(
        session,
        "proposed",
        {"study_digest": study.digest, "study": study.canonical(), "proposer": proposer},
    )


def decide(session: Session, decision: Decision) -> None:
    """Take an institution's decision; the same one again changes nothing.

    Args:
        session: the caller commits.
        decision: as the institution signed it.

    Raises:
        StudyError: no such study was proposed, it was taken back or ended, or the institution
            takes no part in it.
        TrustError: the institution is not known, its role may not decide so, the signature is
            not by its key, or the decision is older than its last one.
    """
    row = _row(session, decision.study_digest)
    institution = session.scalar(
        select(Institution).where(Institution.name == decision.institution)
    )
    if institution is None or institution.state != "joined" or not institution.signing_key:
        raise TrustError(f"{decision.institution} has not joined, so it cannot decide.")
    decision.check(identity.verify_key(institution.signing_key))
    role = Role(institution.role)
    if decision.kind not in agreement.KINDS[role]:
        raise TrustError(f"As {role}, {institution.name} cannot {decision.kind} a study.")
    if role is Role.DATA_HOLDER:
        Study.from_canonical(row.document).institution(institution.name)
    if decision.kind not in {"withdraw", "veto"}:
        _require_open(row)
    earlier = [d for d in _decisions(session, row) if d.institution == institution.name]
    if decision in earlier:
        return
    now = datetime.now(UTC)
    if earlier and decision.moment <= max(d.moment for d in earlier):
        raise TrustError(
            f"A newer decision of {institution.name} on this study is already here.",
            advice="If the site's clock is behind, set it right and decide again.",
        )
    if decision.moment > now + _CLOCKS_DIFFER:
        raise TrustError(
            f"The decision of {institution.name} is from the future.",
            advice="Set the site's clock right and decide again.",
        )
    session.add(
        DecisionRow(
            study_digest=row.digest,
            institution=institution.name,
            received_at=now,
            document=decision.model_dump_json(),
        )
    )
    session.flush()
    write(session, "decided", decision.model_dump(mode="json"))


def proposal(session: Session, digest: str) -> Proposal:
    """A proposed study with its decisions.

    Raises:
        StudyError: no such study was proposed.
    """
    return _proposal(session, _row(session, digest))


def standing_of(session: Session, digest: str) -> Standing:
    """How a study stands at this moment.

    Raises:
        StudyError: no such study was proposed.
    """
    return proposal(session, digest).standing


def find(session: Session, study: str) -> Proposal:
    """The proposed study with this name or this beginning of its digest; the newest of a name.

    Raises:
        StudyError: there is none, or more than one digest begins so.
    """
    rows = session.scalars(select(ProposalRow).order_by(ProposalRow.proposed_at.desc())).all()
    named = [row for row in rows if row.name == study][:1]
    found = named or [row for row in rows if study and row.digest.startswith(study.lower())]
    if len(found) != 1:
        how_many = "More than one proposed study begins" if found else "No proposed study is"
        raise StudyError(f"{how_many} {study!r}.", advice=_STUDIES)
    return _proposal(session, found[0])


def list_for(session: Session, institution: str, role: Role) -> list[Proposal]:
    """The proposed studies that concern an institution, the newest first.

    A data holder sees those that it takes part in, a researcher those that it proposed or
    whose release it may receive, auditors and the coordinator all.
    """
    rows = session.scalars(select(ProposalRow).order_by(ProposalRow.proposed_at.desc())).all()
    every = (_proposal(session, row) for row in rows)
    return [found for found in every if concerns(found, institution, role)]


def concerns(found: Proposal, institution: str, role: Role) -> bool:
    """Whether an institution may see a proposed study."""
    if role in {Role.AUDITOR, Role.COORDINATOR} or found.proposer == institution:
        return True
    if role is Role.DATA_HOLDER:
        return any(i.name == institution for i in found.study.institutions)
    return institution in found.study.governance.recipients


def recall(session: Session, digest: str) -> None:
    """Take a proposal back; a run of it stops before its next round.

    Raises:
        StudyError: no such study was proposed.
    """
    row = _row(session, digest)
    if row.recalled_at is None:
        row.recalled_at = datetime.now(UTC)
        write(session, "recalled", {"study_digest": digest})


def end(session: Session, digest: str) -> None:
    """End a study: no further run of it starts, one under way stops before its next round.

    Raises:
        StudyError: no such study was proposed.
    """
    row = _row(session, digest)
    if row.ended_at is None:
        row.ended_at = datetime.now(UTC)
        write(session, "ended", {"study_digest": digest})


def start(session: Session, digest: str) -> None:
    """Write down that a run of the study starts.

    Raises:
        StudyError: no such study was proposed.
        RunError: its rule is not met; the message says what is missing.
    """
    found = proposal(session, digest)
    if not found.standing.may_run:
        raise RunError(
            f"The study {found.study.study.name} is {found.standing.state}: {why_not(found)}.",
            advice="`fedpact run studies` shows who has signed.",
        )
    row = _row(session, digest)
    row.started_at = row.started_at or datetime.now(UTC)


def terms(engine: Engine, digest: str) -> Terms:
    """What the agreement allows at this moment, for the round loop.

    Raises:
        StorageError: the database cannot be read.
    """
    with transaction(engine) as session:
        found = proposal(session, digest)
    return Terms(found.standing.signed, _sentence(why_not(found)))


def why_not(found: Proposal) -> str:
    """Why a study may not run, in words; empty while it may.

    Those who said no come first, with their reason.
    """
    if found.standing.may_run:
        return ""
    said = [
        f"{d.institution} {_PAST[d.kind]}" + (f" ({d.reason})" if d.reason else "")
        for d in refusals(found.decisions)
    ]
    if found.standing.missing:
        said.append(f"it lacks {'; '.join(found.standing.missing)}")
    elif found.standing.state == "ended":
        until = found.study.governance.until
        over = until is not None and datetime.now(UTC).date() > until
        said.append(f"its last day was {until}" if over else "the coordinator ended it")
    elif not said:
        said.append("its proposer took it back")
    return ", and ".join(said)


_PAST = {"refuse": "refused", "withdraw": "withdrew", "veto": "vetoed it"}


def refusals(decisions: Sequence[Decision]) -> list[Decision]:
    """The newest decisions of those who say no."""
    return [d for d in agreement.newest(decisions).values() if d.kind in _PAST]


def may_still_be_agreed(found: Proposal) -> bool:
    """Whether the rule would be met if all who are still silent said yes."""
    study, silent = found.study, {i.name for i in found.study.institutions}
    silent -= {d.institution for d in found.decisions}
    yes = [_assumed(study, name, "approve") for name in silent]
    yes.append(_assumed(study, _ANY_AUDITOR, "consent"))
    best = agreement.standing(study, [*found.decisions, *yes], frozenset({_ANY_AUDITOR}))
    return found.standing.state == "proposed" and best.may_run


def as_json(found: Proposal) -> dict[str, object]:
    """For programs."""
    newest = agreement.newest(found.decisions).values()
    return {
        "study_digest": found.study.digest,
        "study": found.study.study.name,
        "state": found.standing.state,
        "proposer": found.proposer,
        "proposed_at": found.proposed_at.isoformat(timespec="seconds"),
        "signed": sorted(found.standing.signed),
        "missing": list(found.standing.missing),
        "decisions": [
            d.model_dump(mode="json", include={"institution", "kind", "reason", "moment"})
            for d in newest
        ],
    }


def _assumed(study: Study, institution: str, kind: agreement.Kind) -> Decision:
    now = datetime.now(UTC)
    return Decision(
        study_digest=study.digest, institution=institution, kind=kind, moment=now, key=""
    )


def _sentence(words: str) -> str:
    return words and f"The study may not run any more: {words}."


def _require_joined(session: Session, participant: Participant) -> None:
    row = session.scalar(select(Institution).where(Institution.name == participant.name))
    if row is None or row.state != "joined":
        raise RunError(
            f"{participant.name} has not joined.",
            advice="`fedpact server invite` makes a token, `fedpact client join` uses it.",
        )
    if row.role != Role.DATA_HOLDER:
        raise RunError(f"{participant.name} has joined as {row.role}, so it holds no data.")
    if row.sector != participant.sector:
        raise RunError(
            f"{participant.name} has joined as {row.sector}, the study says "
            f"{participant.sector}.",
            advice="Mend the study: its rule may count signatures by sector.",
        )


def _require_open(row: ProposalRow) -> None:
    if row.recalled_at is not None or row.ended_at is not None:
        how = "taken back" if row.recalled_at else "ended"
        raise StudyError(
            f"The study {row.name} ({row.digest[:12]}) was {how}.",
            advice="Propose another: any change makes it another study.",
        )


def _row(session: Session, digest: str) -> ProposalRow:
    row = session.get(ProposalRow, digest)
    if row is None:
        raise StudyError(f"The study {digest[:12]} was never proposed.", advice=_STUDIES)
    return row


def _proposal(session: Session, row: ProposalRow) -> Proposal:
    study = Study.from_canonical(row.document)
    decisions = _decisions(session, row)
    auditors = session.scalars(
        select(Institution.name).where(Institution.role == Role.AUDITOR.value)
    )
    standing = agreement.standing(
        study,
        decisions,
        frozenset(auditors),
        started=row.started_at is not None,
        ended=row.ended_at is not None,
        recalled=row.recalled_at is not None,
    )
    return Proposal(study, row.proposer, row.proposed_at, tuple(decisions), standing)


def _decisions(session: Session, row: ProposalRow) -> list[Decision]:
    """Decisions that count (rule 4), in the order in which they came."""
    documents = session.scalars(
        select(DecisionRow.document)
        .join(Institution, Institution.name == DecisionRow.institution)
        .where(
            DecisionRow.study_digest == row.digest,
            Institution.joined_at <= DecisionRow.received_at,
            Institution.revoked_at.is_(None),
        )
        .order_by(DecisionRow.id)
    )
    return [Decision.model_validate_json(document) for document in documents]
