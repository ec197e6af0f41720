"""What this institution was shown and what it signed: enough to say no without anyone's help.

A study is answered only while this institution's own newest decision on exactly that study
says approve. Others' signatures are shown to people; nothing here depends on them, so that
neither a coordinator that lies nor one that is away changes what the site does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from fedpact.client.tables import OwnDecisionRow, ShownStudyRow, exclusive, reading
from fedpact.common.agreement import Decision, Kind, State
from fedpact.common.errors import PolicyError, StudyError
from fedpact.common.identity import SigningKey
from fedpact.common.study import Study
from fedpact.common.transcript_store import write

_NOT_APPROVED: dict[Kind, str] = {
    "refuse": "has refused",
    "withdraw": "has withdrawn from",
    "consent": "holds no data for",
    "veto": "has vetoed",
}


class Heard(BaseModel):
    """What the coordinator says of a study besides the study itself.

    Attributes:
        proposer: the institution that proposed it, or the coordinator.
        proposed_at: when.
        state: proposed, agreed, active, ended or withdrawn.
        missing: what the study's rule still wants, in words.
        decisions: of all institutions, as they signed them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    proposer: str
    proposed_at: AwareDatetime
    state: State
    missing: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A study that was shown here.

    Attributes:
        study: every byte of it.
        heard: what the coordinator last said of it.
        heard_at: when that was.
        own: this institution's newest decision; None while it has none.
    """

    study: Study
    heard: Heard
    heard_at: datetime
    own: Decision | None


class Agreements:
    """The agreements of one institution, in its own database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def hear(self, study: Study, heard: Heard) -> bool:
        """Write down a study that was shown, or what is new of it; whether anything is.

        Raises:
            StorageError: it could not be written down.
        """
        now, said = datetime.now(UTC), heard.model_dump(mode="json")
        with exclusive(self._engine, "shown_studies") as session:
            row = session.get(ShownStudyRow, study.digest)
            if row is None:
                row = ShownStudyRow(
                    digest=study.digest,
                    name=study.study.name,
                    document=study.canonical(),
                    shown_at=now,
                    heard_at=now,
                    heard={},
                )
                session.add(row)
            changed = row.heard != said
            row.heard, row.heard_at = said, now
            return changed

    def list(self) -> "Sequence[Shown]":
        """The studies that were shown here, the newest first.

        Raises:
            StorageError: the database cannot be read.
        """
        newest_first = select(ShownStudyRow).order_by(ShownStudyRow.shown_at.desc())
        with reading(self._engine) as session:
            return [_shown(session, row) for row in session.scalars(newest_first)]

    def find(self, study: str) -> Shown:
        """The one shown study with this name, or this beginning of its digest.

        What is about to be signed must be clear: a study that was changed and proposed anew has
        the same name.

        Raises:
            StudyError: there is none, or more than one.
            StorageError: the database cannot be read.
        """
        shown = self.list()
        named = [s for s in shown if s.study.study.name == study]
        found = named or [
            s for s in shown if study and s.study.digest.startswith(study.lower())
        ]
        if len(found) != 1:
            how_many = "More than one study" if found else "No study"
            raise StudyError(
                f"{how_many} shown here is {study!r}.",
                advice="`fedpact client studies` shows them: give the digest's first letters.",
            )
        return found[0]

    def decide(
        self, key: SigningKey, institution: str, study: Study, kind: Kind, reason: str = ""
    ) -> Decision:
        """Sign a decision and write it down; it holds here from now on, sent or not.

        Raises:
            StorageError: it could not be written down, and does not hold.
        """
        with exclusive(self._engine, "own_decisions") as session:
            last = _newest(session, study.digest)
            now = datetime.now(UTC)
            # Later than the last one even if the clock was set back: the newest counts.
            moment = max(now, last.moment + timedelta(microseconds=1)) if last else now
            decision = Decision.make(key, institution, study.digest, kind, reason, moment)
            session.add(
                OwnDecisionRow(study_digest=study.digest, document=decision.model_dump_json())
            )
            session.flush()
            write(session, "decided", decision.model_dump(mode="json"))
            return decision

    def unsent(self) -> "Sequence[Decision]":
        """The newest decision on each study that the coordinator has not taken yet.

        What a later decision replaced need not be sent: it counts for nothing any more.

        Raises:
            StorageError: the database cannot be read.
        """
        newest = select(func.max(OwnDecisionRow.id)).group_by(OwnDecisionRow.study_digest)
        waiting = (
            select(OwnDecisionRow.document)
            .where(OwnDecisionRow.id.in_(newest), OwnDecisionRow.sent_at.is_(None))
            .order_by(OwnDecisionRow.id)
        )
        with reading(self._engine) as session:
            return [Decision.model_validate_json(text) for text in session.scalars(waiting)]

    def sent(self, decision: Decision) -> None:
        """Write down that the coordinator has taken a decision.

        Raises:
            StorageError: it could not be written down; it is sent again, which is harmless.
        """
        with exclusive(self._engine, "own_decisions") as session:
            rows = session.scalars(
                select(OwnDecisionRow).where(
                    OwnDecisionRow.study_digest == decision.study_digest,
                    OwnDecisionRow.document == decision.model_dump_json(),
                )
            )
            for row in rows:
                row.sent_at = datetime.now(UTC)

    def require(self, study: Study, today: date | None = None) -> None:
        """Whether this institution agrees to a study now.

        Args:
            study: as a request brought it, its digest checked.
            today: the day, in UTC; the present one if not given.

        Raises:
            PolicyError: it has not signed exactly this study, said no since, or the study's
                last day is past.
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            own = _newest(session, study.digest)
        named = f"the study {study.digest[:12]}"
        if own is None:
            raise PolicyError(
                f"This institution has not signed {named}.",
                advice=f"There: `fedpact client approve {study.digest[:12]}`.",
            )
        if own.kind != "approve":
            raise PolicyError(f"This institution {_NOT_APPROVED[own.kind]} {named}.")
        until = study.governance.until
        if until is not None and (today or datetime.now(UTC).date()) > until:
            raise PolicyError(f"The last day of {named} was {until}.")


def _newest(session: Session, digest: str) -> Decision | None:
    text = session.scalar(
        select(OwnDecisionRow.document)
        .where(OwnDecisionRow.study_digest == digest)
        .order_by(OwnDecisionRow.id.desc())
        .limit(1)
    )
    return None if text is None else Decision.model_validate_json(text)


def _shown(session: Session, row: ShownStudyRow) -> Shown:
    return Shown(
        study=Study.from_canonical(row.document),
        heard=Heard.model_validate(row.heard),
        heard_at=row.heard_at,
        own=_newest(session, row.digest),
    )
