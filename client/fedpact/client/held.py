"""Updates that wait for a person's word before they leave, where the policy asks for it.

A held update is trained, checked and on disk, and has not left. Its bytes wait in the outbox,
what a steward should know of it in the database, with the word once there is one. A word is on
exactly those bytes. A run does not go back, so an update that still waits when its run's next one
is held is given up.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, select

from fedpact.client.tables import HeldRow, exclusive, reading
from fedpact.common.errors import UsageError
from fedpact.common.private_files import write_private

Word = Literal["release", "withhold"]
# How often a site looks whether a person has spoken.
_LOOK_SECONDS = 0.5


class StoppingError(Exception):
    """The site stops while it waits for a person: the request stays unanswered."""


@dataclass(frozen=True)
class Held:
    """An update that waits, or that a person has decided on.

    Attributes:
        at: since when.
        bytes: header and array together.
        sha256: of exactly the bytes that would leave.
        summary: what a steward should know of it.
        word: what a person has said; None: nothing yet.
    """

    run: str
    round: int
    at: datetime
    bytes: int
    sha256: str
    summary: dict[str, Any]
    word: Word | None


class HeldUpdates:
    """The updates that one site holds back.

    Args:
        engine: the site's database.
        outbox: the folder where their bytes wait.
    """

    def __init__(self, engine: Engine, outbox: Path) -> None:
        self._engine = engine
        self._outbox = outbox

    def hold(self, run: str, number: int, data: bytes, summary: dict[str, Any]) -> None:
        """Keep an update until a person has decided, durably.

        Raises:
            StorageError: it could not be written down.
        """
        with exclusive(self._engine, "held_updates") as session:
            write_private(self._path(run, number), data)
            earlier = HeldRow.run == run, HeldRow.round < number
            for row in session.scalars(select(HeldRow).where(*earlier)):
                self._path(run, row.round).unlink(missing_ok=True)
                row.word = row.word or "withhold"
            session.merge(
                HeldRow(
                    run=run,
                    round=number,
                    at=datetime.now(UTC),
                    bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                    summary=summary,
                    word=None,
                )
            )

    def find(self, run: str, number: int) -> Held | None:
        """A round's held update, decided on or not; None: none is, or its bytes are lost.

        Raises:
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            row = session.get(HeldRow, (run, number))
        if row is None or (row.word != "withhold" and not self._path(run, number).exists()):
            return None
        return _held(row)

    def waiting(self) -> list[Held]:
        """Those on which nobody has decided, the oldest first.

        Raises:
            StorageError: the database cannot be read.
        """
        undecided = select(HeldRow).where(HeldRow.word.is_(None)).order_by(HeldRow.at)
        with reading(self._engine) as session:
            return [_held(row) for row in session.scalars(undecided)]

    def decide(self, run: str, number: int, word: Word) -> Held:
        """Say whether an update may leave; what has been withheld stays so.

        Raises:
            UsageError: no such update waits.
            StorageError: it could not be written down.
        """
        with exclusive(self._engine, "held_updates") as session:
            row = session.get(HeldRow, (run, number))
            if row is None or row.word not in (None, word):
                raise UsageError(
                    f"No update of round {number} of run {run} waits here.",
                    advice="`fedpact client departures --waiting` lists those that do.",
                )
            row.word = word
            session.flush()
            if word == "withhold":
                self._path(run, number).unlink(missing_ok=True)
            return _held(row)

    def read(self, held: Held) -> bytes | None:
        """The bytes that wait; None if they are not those that were held."""
        with contextlib.suppress(OSError):
            data = self._path(held.run, held.round).read_bytes()
            if hashlib.sha256(data).hexdigest() == held.sha256:
                return data
        return None

    def gone(self, held: Held) -> None:
        """Forget the bytes of an update that has left: the outbox has them."""
        self._path(held.run, held.round).unlink(missing_ok=True)

    def wait(
        self, run: str, number: int, seconds: float, pause: Callable[[float], bool]
    ) -> Held | None:
        """Wait until a person has decided.

        Args:
            run: whose update it is.
            number: of the round.
            seconds: the longest to wait.
            pause: waits so many seconds; whether the site is to stop.

        Returns:
            the update with its word; without one when the time is over; None if it is lost.

        Raises:
            StoppingError: the site is to stop.
            StorageError: the database cannot be read.
        """
        left = seconds
        while (held := self.find(run, number)) is not None and held.word is None and left > 0:
            rest = min(left, _LOOK_SECONDS)
            if pause(rest):
                raise StoppingError
            left -= rest
        return held

    def _path(self, run: str, number: int) -> Path:
        return self._outbox / f"{run}.{number}.held"


def _held(row: HeldRow) -> Held:
    word: Word | None = None
    if row.word is not None:
        word = "release" if row.word == "release" else "withhold"
    return Held(row.run, row.round, row.at, row.bytes, row.sha256, row.summary, word)
