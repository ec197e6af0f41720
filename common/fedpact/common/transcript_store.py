"""A transcript in a room's database, and its way into a file.

Each room has a table of its own (`TranscriptColumns`). An entry is written in the transaction
of what it records, so that neither is ever there without the other; whoever owns the
transaction commits it. From the first entry to the commit no other transaction writes to the
table, so the chain cannot fork. Append last in a transaction, to keep others waiting briefly.
"""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import BigInteger, String, Text, false, insert, select, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from fedpact.common.database import disk_errors
from fedpact.common.identity import SigningKey
from fedpact.common.transcript import NO_HASH, Entry, Head, Json, Kind
from fedpact.common.transcript_check import header_line

_ROWS_AT_ONCE = 1000


class TranscriptColumns:
    """The columns of a transcript's table, for a room to add to its base class.

    `line` is the entry's canonical text, `hash` that entry's.
    """

    __tablename__: str

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    line: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64))


@dataclass(frozen=True)
class TranscriptStore:
    """One party's own transcript.

    Attributes:
        rows: the room's table.
        author: the institution's name, or `coordinator`.
        key: what the author signs with.
    """

    rows: type[TranscriptColumns]
    author: str
    key: SigningKey

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
            SQLAlchemyError: the database cannot be written.
        """
        self._lock(session)
        number, previous = self._end(session)
        entry = Entry.sign(
            self.key,
            number=number,
            moment=moment or datetime.now(UTC),
            author=self.author,
            kind=kind,
            body=body,
            previous=previous,
        )
        row = {"number": number, "line": entry.line, "hash": entry.hash}
        session.execute(insert(self.rows).values(row))
        return entry

    def entries(self, session: Session, start: int = 0) -> Iterator[Entry]:
        """The entries from a number on, in order; they are read, not verified.

        Raises:
            ValueError: a row does not hold an entry any more.
        """
        return (Entry.parse(line) for line, _ in self._lines(session, start))

    def head(self, session: Session) -> Head:
        """The author's word, signed now, on all that is written so far."""
        length, last = self._end(session)
        return Head.sign(self.key, author=self.author, length=length, last=last)

    def export(self, session: Session, path: Path) -> Head:
        """Write the transcript to a file that `fedpact audit verify` reads: whole, or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        # The head is of the very lines that are written, whatever is appended meanwhile.
        length, last = 0, NO_HASH
        with disk_errors():
            try:
                with temporary.open("x", encoding="utf-8", newline="\n") as file:
                    file.write(f"{header_line(self.author, self.key.public_key())}\n")
                    for line, last in self._lines(session, 0):  # noqa: B007 - the last stays
                        length += 1
                        file.write(f"{line}\n")
                    head = Head.sign(self.key, author=self.author, length=length, last=last)
                    file.write(f"{head.line}\n")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return head

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

    def _end(self, session: Session) -> tuple[int, str]:
        """How many entries there are, and the last one's hash."""
        newest = select(self.rows.number, self.rows.hash).order_by(self.rows.number.desc())
        row = session.execute(newest.limit(1)).first()
        return (0, NO_HASH) if row is None else (row.number + 1, row.hash)

    def _lines(self, session: Session, start: int) -> Iterator[tuple[str, str]]:
        rows = session.execute(
            select(self.rows.line, self.rows.hash)
            .where(self.rows.number >= start)
            .order_by(self.rows.number)
            .execution_options(yield_per=_ROWS_AT_ONCE)
        )
        return ((row.line, row.hash) for row in rows)
