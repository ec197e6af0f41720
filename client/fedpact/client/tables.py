"""The tables of a site: its data sets, what privacy they have spent, what left, what it signed.

Rows are only ever added, with few exceptions: a reservation is settled once, a decision sent
once, a person's word on a held update is put beside it, and of a study that was shown here the
newest of what others decided is kept. The migrations
in `migrations/` make these tables; a test holds the two together. Everything here works on
SQLite and PostgreSQL alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from fedpact.common.database import storage_error
from fedpact.common.transcript_store import TranscriptColumns


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite drops the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the moment its zone."""
        del dialect
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


# SQLite numbers rows by itself only where the key is an INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """The root of the site's tables."""


class DatasetRow(Base):
    """A data set that the institution has registered."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    path: Mapped[str] = mapped_column(String(4096))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    records: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str] = mapped_column(String(16))
    added_at: Mapped[datetime] = mapped_column(UtcDateTime)
    population: Mapped[str] = mapped_column(String(120), server_default="")


class IdentityRow(Base):
    """What a data set was once: its content under that name, sampled from that population.

    Never removed: whoever shared a budget once shares it for ever.
    """

    __tablename__ = "dataset_identities"

    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    population: Mapped[str] = mapped_column(String(120), primary_key=True)


class ReservationRow(Base):
    """Privacy set aside for one round, and what of it was used.

    `kind` is training, or metrics: a plain Gaussian release, with a sampling rate of 1.
    `sha256` is the content of the data set when it was reserved: the name may later stand for
    other content, and the content for another name. `noise_multiplier` is 0 where a study ran
    without DP. `unit` is whom its ε protects, as `Study.unit` has it.
    """

    __tablename__ = "reservations"
    __table_args__ = (
        UniqueConstraint("run", "round", "dataset", "kind", name="one_per_round"),
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.name"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    study_digest: Mapped[str] = mapped_column(String(64))
    study_name: Mapped[str] = mapped_column(String(120))
    run: Mapped[str] = mapped_column(String(64))
    round: Mapped[int] = mapped_column(Integer)
    noise_multiplier: Mapped[float] = mapped_column(Double)
    sample_rate: Mapped[float] = mapped_column(Double)
    steps: Mapped[int] = mapped_column(Integer)
    delta: Mapped[float] = mapped_column(Double)
    reserved_at: Mapped[datetime] = mapped_column(UtcDateTime)
    settled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    settled_steps: Mapped[int | None] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(16), server_default="training")
    unit: Mapped[str] = mapped_column(String(520), server_default="record")


class DepartureRow(Base):
    """Something that left the house: an update, a refusal, or the same bytes again.

    `kind` is update, refusal, or failure: the refusal of a round in which training failed.
    """

    __tablename__ = "departures"
    __table_args__ = (Index("departures_of_round", "run", "round"),)

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    run: Mapped[str] = mapped_column(String(64))
    round: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(16))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)


class HeldRow(Base):
    """An update that waits for a person's word before it leaves.

    `word` is release or withhold, once there is one. `sha256` is of the bytes that wait.
    """

    __tablename__ = "held_updates"

    run: Mapped[str] = mapped_column(String(64), primary_key=True)
    round: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    word: Mapped[str | None] = mapped_column(String(16))


class TranscriptRow(TranscriptColumns, Base):
    """What happened, as the site wrote it down (`fedpact.common.transcript`)."""

    __tablename__ = "site_transcript"


class ShownStudyRow(Base):
    """A study that was shown to this institution, and what it last heard of it.

    `document` is the study's canonical JSON; `heard` is the rest of what the coordinator says.
    """

    __tablename__ = "shown_studies"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    document: Mapped[str] = mapped_column(Text)
    shown_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heard_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heard: Mapped[dict[str, Any]] = mapped_column(JSON)


class OwnDecisionRow(Base):
    """What this institution decided about a study; `document` is the signed decision's JSON."""

    __tablename__ = "own_decisions"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    study_digest: Mapped[str] = mapped_column(String(64), index=True)
    document: Mapped[str] = mapped_column(Text)
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


@contextmanager
def exclusive(engine: Engine, table: str) -> Iterator[Session]:
    """A transaction that no other `exclusive` one on the table overlaps; readers go on.

    What is read in it is therefore still true when it commits.

    Raises:
        StorageError: the database cannot be reached or written; nothing was committed.
    """
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            if engine.dialect.name == "sqlite":
                # The driver would begin a deferred transaction, and only at the first write.
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            else:
                session.execute(text(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
            yield session
    except SQLAlchemyError as error:
        raise storage_error(error) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session that only reads.

    Raises:
        StorageError: the database cannot be reached.
    """
    try:
        with Session(engine, expire_on_commit=False) as session:
            yield session
    except SQLAlchemyError as error:
        raise storage_error(error) from error
