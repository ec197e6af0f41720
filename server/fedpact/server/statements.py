"""The newest signed statement of each institution: what studies have cost its data sets."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Engine, LargeBinary, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from fedpact.common.errors import TrustError
from fedpact.common.spending import Spending
from fedpact.server.tables import Base, Moment, transaction


class StatementRow(Base):
    """An institution's newest statement, as it signed it."""

    __tablename__ = "statements"

    institution: Mapped[str] = mapped_column(String(120), primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    key: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    received_at: Mapped[datetime] = mapped_column(Moment)


def submit(engine: Engine, institution: str, key: bytes, text: str, signature: bytes) -> None:
    """Keep an institution's statement in the place of its last.

    Args:
        engine: the coordinator's database.
        institution: who calls.
        key: the Ed25519 public key that signed the call.
        text: the statement.
        signature: over it.

    Raises:
        WireError: it is not a statement.
        TrustError: it is another's, not signed with the caller's key, or older than its last.
    """
    stated = Spending.read(text, key, signature)
    if stated.institution != institution:
        raise TrustError(f"The statement is of {stated.institution}, the call is not.")
    with transaction(engine) as session:
        row = session.get(StatementRow, institution)
        if row is not None and stated.moment < _moment(row):
            raise TrustError(f"A newer statement of {institution} is already here.")
        session.merge(
            StatementRow(
                institution=institution,
                text=text,
                key=key,
                signature=signature,
                received_at=datetime.now(UTC),
            )
        )


def newest(session: Session) -> Sequence[StatementRow]:
    """The newest statement of each institution, by name."""
    return session.scalars(select(StatementRow).order_by(StatementRow.institution)).all()


def _moment(row: StatementRow) -> datetime:
    return Spending.model_validate_json(row.text).moment
