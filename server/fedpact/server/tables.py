"""The coordinator's tables: the base class that all share, and the institutions.

Moments are stored in UTC and come back with their time zone, in SQLite too. Flower's node
ids are unsigned 64-bit numbers, which neither database has: they are kept as text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, Engine, Index, LargeBinary, String
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

from fedpact.common.database import storage_error
from fedpact.common.transcript_store import TranscriptColumns


class Base(DeclarativeBase):
    """What every table of the coordinator inherits."""


class Moment(TypeDecorator[datetime]):
    """A moment with its time zone, which SQLite would forget."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store as UTC."""
        del dialect
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read as UTC; SQLite gives moments without a zone."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Institution(Base):
    """An institution that was invited, and what became of the invitation.

    It is *invited* until `joined_at` is set, *joined* from then on, *revoked* once
    `revoked_at` is set. `secret_sha256` is of the newest invitation. `public_key` is its
    node's (PEM), `signing_key` the one that it signs with (Ed25519, 32 bytes); a role without
    a site has no node.
    """

    __tablename__ = "institutions"
    __table_args__ = (Index("institutions_signing_key", "signing_key", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(120), unique=True)
    sector: Mapped[str] = mapped_column(String(16))
    role: Mapped[str] = mapped_column(String(16), server_default="data-holder")
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    invited_at: Mapped[datetime] = mapped_column(Moment)
    expires_at: Mapped[datetime] = mapped_column(Moment)
    joined_at: Mapped[datetime | None] = mapped_column(Moment)
    public_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    signing_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    node_id: Mapped[str | None] = mapped_column(String(20), unique=True)
    revoked_at: Mapped[datetime | None] = mapped_column(Moment)

    @property
    def state(self) -> str:
        """invited, joined or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "invited" if self.joined_at is None else "joined"


class TranscriptRow(TranscriptColumns, Base):
    """What happened, as the coordinator wrote it down (`fedpact.common.transcript`)."""

    __tablename__ = "coordinator_transcript"


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session that commits at the end and rolls back on any error.

    Raises:
        StorageError: the database fails, in the block or when it commits.
    """
    try:
        with Session(engine) as session, session.begin():
            yield session
    except SQLAlchemyError as error:
        raise storage_error(error) from error
