"""A transcript in a room's database, and its way into a file.

Each room has a table of its own (`TranscriptColumns`). An entry is written in the transaction
of what it records, so that neither is ever there without the other; whoever owns the
transaction commits it. From the first entry to the commit no other transaction writes to the
table, so the chain cannot fork. Append last in a transaction, to keep others waiting briefly.

An author's key may change (`rotated`): the transcript itself says with which key it goes on.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sqlalchemy import BigInteger, Engine, String, Text, false, insert, select, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from fedpact.common import identity
from fedpact.common.database import disk_errors
from fedpact.common.errors import TrustError
from fedpact.common.identity import SigningKey
from fedpact.common.transcript import NO_HASH, Entry, Head, Json, Kind, canonical, next_key
from fedpact.common.transcript_check import header_line

_ROWS_AT_ONCE = 1000
_OPTION = "fedpact_transcript"


class TranscriptColumns:
    """The columns of a transcript's table, for a room to add to its base class.

    `line` is the entry's canonical text, `hash` that entry's. `next_key` is the public key,
    in hexadecimal, that signs what follows the entry.
    """

    __tablename__: str

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    line: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64))
    next_key: Mapped[str] = mapped_column(String(64))


@dataclass(frozen=True)
class _End:
    """Where a transcript ends; `next_key` is empty while nothing is written."""

    length: int
    hash: str
    next_key: str


@dataclass(frozen=True)
class TranscriptStore:
    """One party's own transcript.

    Attributes:
        rows: the room's table.
        author: the institution's name, or `coordinator`.
        keys: the author's signing keys at hand, read anew each time: the one in use first, and
            while keys are being changed the next one too.
    """

    rows: type[TranscriptColumns]
    author: str
    keys: Callable[[], Sequence[SigningKey]]

    @classmethod
    def of(cls, rows: type[TranscriptColumns], author: str, key: SigningKey) -> Self:
        """The transcript of an author who has one key."""
        return cls(rows, author, lambda: (key,))

    def append(
        self,
        session: Session,
        kind: Kind,
        body: Mapping[str, Json],
        *,
        moment: datetime | None = None,
    ) -> Entry:
        """Write what happened, in the caller's transaction; the caller commits.

        Args:
            session: in a transaction.
            kind: what happened.
            body: the particulars.
            moment: when; the present if not given.

        Raises:
            AuditError: a transcript cannot hold this.
            TrustError: the key with which it goes on is not at hand.
            SQLAlchemyError: the database cannot be written.
        """
        self._lock(session)
        end = self._end(session)
        key = self._key(end)
        entry = Entry.sign(
            key,
            number=end.length,
            moment=moment or datetime.now(UTC),
            author=self.author,
            kind=kind,
            body=body,
            previous=end.hash,
        )
        row = {
            "number": end.length,
            "line": entry.line,
            "hash": entry.hash,
            "next_key": (next_key(entry) or identity.public_bytes(key)).hex(),
        }
        session.execute(insert(self.rows).values(row))
        return entry

    def goes_on_with(self, session: Session) -> bytes:
        """The public key that signs what comes next, 32 bytes.

        Raises:
            TrustError: the key with which it goes on is not at hand.
        """
        return identity.public_bytes(self._key(self._end(session)))

    def newest(self, session: Session) -> Entry | None:
        """The last entry; it is read, not verified."""
        last = select(self.rows.line).order_by(self.rows.number.desc()).limit(1)
        line = session.scalar(last)
        return None if line is None else Entry.parse(line)

    def last_seen(self, session: Session, author: str) -> Head | None:
        """The newest head of another party that was written down."""
        # Quotes inside JSON strings are escaped: no other entry's text can hold these.
        said = f'"body":{{"author":{canonical(author)},'
        line = session.scalar(
            select(self.rows.line)
            .where(self.rows.line.contains('"kind":"head-seen"'))
            .where(self.rows.line.contains(said, autoescape=True))
            .order_by(self.rows.number.desc())
            .limit(1)
        )
        return None if line is None else Head.from_document(dict(Entry.parse(line).body))

    def entries(self, session: Session, start: int = 0) -> Iterator[Entry]:
        """The entries from a number on, in order; they are read, not verified.

        Raises:
            ValueError: a row does not hold an entry any more.
        """
        return (Entry.parse(row.line) for row in self._rows(session, start))

    def head(self, session: Session) -> Head:
        """The author's word, signed now, on all that is written so far.

        Raises:
            TrustError: the key with which the transcript goes on is not at hand.
        """
        return self._head(self._end(session))

    def lines(self, session: Session) -> Iterator[str]:
        """The whole transcript as its file has it, without ends of lines.

        Raises:
            TrustError: the key with which the transcript goes on is not at hand.
        """
        # The first entry is never a change of keys, so what follows it has the first key.
        first = select(self.rows.next_key).where(self.rows.number == 0)
        own = session.scalar(first) or self.goes_on_with(session).hex()
        yield header_line(self.author, identity.verify_key(bytes.fromhex(own)))
        # The head is of the very lines that are given, whatever is appended meanwhile.
        end = _End(0, NO_HASH, own)
        for row in self._rows(session, 0):
            end = _End(end.length + 1, row.hash, row.next_key)
            yield row.line
        yield self._head(end).line

    def export(self, session: Session, path: Path) -> None:
        """Write the transcript to a file that `fedpact audit verify` reads: whole, or not at all.

        Raises:
            StorageError: the file cannot be written.
            TrustError: the key with which the transcript goes on is not at hand.
        """
        write_lines(path, self.lines(session))

    def _head(self, end: _End) -> Head:
        return Head.sign(self._key(end), author=self.author, length=end.length, last=end.hash)

    def _key(self, end: _End) -> SigningKey:
        keys = self.keys()
        if not end.next_key:
            return keys[0]
        for key in keys:
            if identity.public_bytes(key).hex() == end.next_key:
                return key
        raise TrustError(
            f"The transcript of {self.author} goes on with a key that is not at hand.",
            advice="Its signing key was replaced by hand: put the right one back.",
        )

    def _lock(self, session: Session) -> None:
        """Keep other writers out until the transaction ends; readers go on."""
        if session.connection().dialect.name == "sqlite":
            # A write that changes nothing: SQLite's driver begins a transaction with the first
            # write, and it must have begun before the last entry is read.
            nothing = update(self.rows).where(false()).values(number=self.rows.number)
            session.execute(nothing, execution_options={"synchronize_session": False})
        else:
            session.execute(
                text(f"LOCK TABLE {self.rows.__tablename__} IN SHARE ROW EXCLUSIVE MODE")
            )

    def _end(self, session: Session) -> _End:
        columns = select(self.rows.number, self.rows.hash, self.rows.next_key)
        row = session.execute(columns.order_by(self.rows.number.desc()).limit(1)).first()
        return _End(0, NO_HASH, "") if row is None else _End(row[0] + 1, row[1], row[2])

    def _rows(self, session: Session, start: int) -> Iterator[TranscriptColumns]:
        return iter(
            session.scalars(
                select(self.rows)
                .where(self.rows.number >= start)
                .order_by(self.rows.number)
                .execution_options(yield_per=_ROWS_AT_ONCE)
            )
        )


def with_transcript(engine: Engine, find: Callable[[], TranscriptStore | None]) -> Engine:
    """An engine whose transactions `write` to a transcript.

    Args:
        engine: of the database that holds the transcript's table.
        find: the transcript; None while there is none yet.
    """
    return engine.execution_options(**{_OPTION: find})


def transcript_of(session: Session) -> TranscriptStore | None:
    """The transcript to which a session's engine writes, if it does."""
    find: Callable[[], TranscriptStore | None] | None = (
        session.connection().get_execution_options().get(_OPTION)
    )
    return find() if find is not None else None


def write(session: Session, kind: Kind, body: Mapping[str, Json]) -> None:
    """Write what a transaction records into the transcript too, where its engine has one.

    Raises:
        AuditError: a transcript cannot hold this.
        TrustError: the key with which it goes on is not at hand.
        SQLAlchemyError: the database cannot be written.
    """
    if (store := transcript_of(session)) is not None:
        store.append(session, kind, body)


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Write a transcript's file: whole, or not at all.

    Args:
        path: the file.
        lines: without their ends.

    Raises:
        StorageError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with disk_errors():
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
