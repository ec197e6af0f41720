"""What a site's daemon says of itself: that it is up, connected, and what it answered last.

The daemon holds `up.lock` while it serves; the kernel lets it go however the daemon ends. It
writes `status.json`, whole each time, when it connects, loses its connection or has answered.
Others believe the file only while the lock is held.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from fedpact.client.home import ClientHome
from fedpact.client.metrics import ClientMetrics
from fedpact.client.node import Answer, Watcher
from fedpact.common import folder_lock, wire
from fedpact.common.errors import StorageError, UsageError
from fedpact.common.private_files import write_private

log = logging.getLogger(__name__)


class DaemonStatus(BaseModel):
    """`status.json`.

    Attributes:
        pid: the daemon's process.
        started_at: when it started.
        connected_since: since when it is connected; None: it is not.
        run: of its last answer; None: it has answered nothing yet.
        round: of its last answer.
        outcome: of its last answer: update, or why it was refused.
        answered_at: when that was.
    """

    model_config = ConfigDict(frozen=True)

    pid: int
    started_at: datetime
    connected_since: datetime | None = None
    run: str | None = None
    round: int | None = None
    outcome: str | None = None
    answered_at: datetime | None = None


def read_status(home: ClientHome) -> DaemonStatus | None:
    """What the daemon of a folder says of itself; None if there is none, or it only starts."""
    if not folder_lock.is_held(home.lock):
        return None
    try:
        return DaemonStatus.model_validate_json(home.status.read_bytes())
    except (OSError, ValueError):
        return None


class Daemon(Watcher):
    """Keeps `status.json` and the metrics of a daemon that serves."""

    def __init__(self, home: ClientHome, metrics: ClientMetrics) -> None:
        self._home = home
        self._metrics = metrics
        self._status = DaemonStatus(pid=os.getpid(), started_at=_now())
        self._write()

    def connected(self) -> None:
        """The coordinator has let us in."""
        self._metrics.connected.set(1)
        self.heard()
        self._write(connected_since=_now())

    def heard(self) -> None:
        """The coordinator has answered."""
        self._metrics.last_contact.set_to_current_time()

    def lost(self) -> None:
        """The connection is gone."""
        self._metrics.connected.set(0)
        self._write(connected_since=None)

    def watched(self, answer: Answer) -> Answer:
        """An `answer` that does the same, and is written down."""

        def watched(packet: wire.Packet) -> wire.Packet:
            reply = answer(packet)
            header, _ = wire.unpack(reply)
            assert not isinstance(header, wire.RequestHeader)  # noqa: S101 - for mypy
            self._metrics.answered(header, reply.size)
            outcome = header.code if isinstance(header, wire.Refusal) else header.kind
            self._write(run=header.run, round=header.round, outcome=outcome, answered_at=_now())
            return reply

        return watched

    def _write(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)
        try:
            write_private(self._home.status, self._status.model_dump_json().encode())
        except StorageError as error:
            # Whoever watches is told less; what the daemon must write down it writes elsewhere.
            log.warning("status.json cannot be written: %s", error)


@contextmanager
def alone(home: ClientHome) -> Iterator[None]:
    """Be the only daemon of a folder: two would answer each other's requests.

    Raises:
        UsageError: another one serves.
        StorageError: the folder cannot be written.
    """

    def taken() -> UsageError:
        return UsageError(
            f"A daemon serves from {home.folder} already.",
            advice="Stop that one first, or take another folder (FEDPACT_CLIENT_HOME).",
        )

    with folder_lock.hold(home.lock, taken):
        try:
            yield
        finally:
            home.status.unlink(missing_ok=True)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
