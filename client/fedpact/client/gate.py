"""The only door out of the house: what may leave, and what was seen leaving.

Nothing is sent but what `release`, `refuse` or `resend` returned, and in this order:

1. What is about to leave is exactly the tensors that the study trains, all values finite,
   within the norm that was agreed on (where one was), with no metrics but those of the kind
   that may leave.
2. For one round of a run, one update leaves. Asked again, the same bytes leave.
3. A refusal says which rule stood in the way; what it would say about the records
   themselves, the site's disk or what other studies have spent stays at home.
4. It is in the outbox, so that it can leave again, and in the departures, so that it can be
   seen, both on disk, before it is handed over.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, func, select

from fedpact.client.home import write_private
from fedpact.client.tables import DepartureRow, exclusive, reading
from fedpact.common import wire
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import PolicyError, TrainingError, WireError
from fedpact.common.transcript import Json
from fedpact.common.transcript_store import write

_KEPT = 16
_KEPT_AT_HOME = {
    "data": "The data set cannot be used for this study; `fedpact client departures` there says why.",
    "model": "The base model cannot be used for this study; the site's own log says why.",
    "training": "Training failed; the site's own log says why.",
}


@dataclass(frozen=True)
class Departure:
    """Something that has left.

    Attributes:
        kind: update, refusal, or failure (the refusal of a round in which training failed).
        bytes: header and array together.
        sha256: of exactly the bytes that left.
        reason: why it was refused, in full; what left may say less. Empty for an update.
    """

    at: datetime
    run: str
    round: int
    kind: str
    bytes: int
    sha256: str
    reason: str


class Gate:
    """The door of one site.

    Args:
        engine: the site's database.
        outbox: the folder for the last packets that left.
    """

    def __init__(self, engine: Engine, outbox: Path) -> None:
        self._engine = engine
        self._outbox = outbox

    def release(
        self,
        header: wire.UpdateHeader,
        change: Weights,
        *,
        expected: Manifest,
        max_norm: float | None = None,
        metrics: Literal["none", "private", "raw"] = "none",
        classes: int = 0,
    ) -> wire.Packet:
        """Check an update, write it down and let it leave.

        Args:
            header: the update's header.
            change: the values that it describes.
            expected: names and shapes of what the study trains.
            max_norm: the L2 norm that the change may have at most; None: any.
            metrics: what metrics may leave: raw ones only where study and policy both say so,
                private ones only where the ledger holds their cost.
            classes: for how many labels counts leave with them; 0: for none.

        Raises:
            PolicyError: it carries metrics, or another update has left for this round.
            TrainingError: the change is not finite, or too large.
            WireError: the change is not what the study trains or the header describes.
            StorageError: it could not be written down, and stays.
        """
        if change.manifest != expected:
            raise WireError("The update is not of exactly the tensors that the study trains.")
        if header.change != wire.ArrayInfo.of(change):
            raise WireError("The update's header does not describe its array.")
        if not change.is_finite():
            raise TrainingError("The update holds values that are not finite.")
        if max_norm is not None and change.norm > max_norm:
            raise TrainingError("The update is larger than the norm that was agreed on.")
        allowed = (metrics, classes)
        if (said := header.metrics) is not None and (said.kind, said.classes) != allowed:
            raise PolicyError("The update carries metrics that the site does not let out.")
        seen = _seen(change)
        return self._depart(header, wire.pack(header, change), seen=seen)

    def refuse(self, refusal: wire.Refusal, told: str = "") -> wire.Packet:
        """Write a refusal down and let it leave, without what must stay at home.

        Args:
            refusal: with the whole reason, which is written down here.
            told: the reason that leaves in its place, where there is one.

        Raises:
            StorageError: it could not be written down, and stays.
        """
        reason = told or _KEPT_AT_HOME.get(refusal.code, refusal.reason)
        public = refusal.model_copy(update={"reason": reason})
        said = {"code": public.code, "reason": public.reason}
        return self._depart(public, wire.pack(public, None), seen=said, reason=refusal.reason)

    def stored(self, run: str, round_number: int) -> wire.Packet | None:
        """The update that left for a round; None if none did, or it is kept no longer."""
        try:
            header, _, array = self._path(run, round_number).read_bytes().partition(b"\n")
            packet = wire.Packet(header=header.decode(), array=array)
            wire.unpack(packet)
        except (OSError, UnicodeDecodeError, WireError):
            return None
        return packet

    def resend(self, run: str, round_number: int) -> wire.Packet | None:
        """Let the stored update of a round leave once more, and write that down too.

        Returns:
            the same bytes as the first time; None as `stored`.

        Raises:
            StorageError: it could not be written down, and stays.
        """
        if (packet := self.stored(run, round_number)) is None:
            return None
        header, change = wire.unpack(packet)
        seen = _seen(change) if change is not None else {}
        return self._depart(header, packet, seen=seen)

    def has_left(self, run: str, round_number: int) -> bool:
        """Whether anything that training computed has left for a round, stored or not.

        That training failed is such a thing too: training again would be another look.

        Raises:
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            return bool(
                session.scalar(select(_left(run, round_number, "update", "failure").exists()))
            )

    def bytes_out(self, run: str) -> int:
        """Bytes that have left in a run, refusals and repetitions included.

        Raises:
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            return int(
                session.scalar(
                    select(func.coalesce(func.sum(DepartureRow.bytes), 0)).where(
                        DepartureRow.run == run
                    )
                )
                or 0
            )

    def departures(self, last: int | None = None) -> list[Departure]:
        """What has left, the oldest first; with `last`, only so many of the newest.

        Raises:
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            newest = select(DepartureRow).order_by(DepartureRow.id.desc()).limit(last)
            rows = list(session.scalars(newest))
        return [
            Departure(
                r.at, r.run, r.round, r.kind, r.bytes, r.sha256, r.summary.get("reason", "")
            )
            for r in reversed(rows)
        ]

    def totals(self) -> dict[str, int]:
        """How much has left: updates, refusals and failures, and bytes together.

        Raises:
            StorageError: the database cannot be read.
        """
        found = {"updates": 0, "refusals": 0, "failures": 0, "bytes": 0}
        kinds = select(
            DepartureRow.kind, func.count(), func.coalesce(func.sum(DepartureRow.bytes), 0)
        ).group_by(DepartureRow.kind)
        with reading(self._engine) as session:
            for kind, count, size in session.execute(kinds):
                found[f"{kind}s"] = count
                found["bytes"] += int(size)
        return found

    def _depart(
        self,
        header: wire.RequestHeader | wire.UpdateHeader | wire.Refusal,
        packet: wire.Packet,
        *,
        seen: Mapping[str, Json],
        **more: Any,
    ) -> wire.Packet:
        """Let it leave: `seen` is what the transcript says of it, `more` stays in the house."""
        data = packet.header.encode() + b"\n" + packet.array
        sha256 = hashlib.sha256(data).hexdigest()
        failed = isinstance(header, wire.Refusal) and header.code == "training"
        kind = "failure" if failed else header.kind
        with exclusive(self._engine, "departures") as session:
            if kind == "update":
                earlier = session.scalars(_left(header.run, header.round, "update")).all()
                if any(other != sha256 for other in earlier):
                    raise PolicyError(
                        f"Another update has left for round {header.round} of run {header.run}."
                    )
                # First the outbox: what is written down as gone can then always go again.
                write_private(self._path(header.run, header.round), data)
                self._prune()
            session.add(
                DepartureRow(
                    at=datetime.now(UTC),
                    run=header.run,
                    round=header.round,
                    kind=kind,
                    bytes=packet.size,
                    sha256=sha256,
                    summary=_summary(header) | more,
                )
            )
            session.flush()
            body: dict[str, Json] = {"run": header.run, "round": header.round}
            body |= {"study_digest": header.study_digest, "bytes": packet.size, **seen}
            body["sha256"] = sha256
            write(session, "update-sent" if kind == "update" else "refused", body)
        return packet

    def _path(self, run: str, round_number: int) -> Path:
        return self._outbox / f"{run}.{round_number}.packet"

    def _prune(self) -> None:
        packets = sorted(
            self._outbox.glob("*.packet"), key=lambda path: path.stat().st_mtime_ns
        )
        for path in packets[:-_KEPT]:
            path.unlink(missing_ok=True)


def _seen(change: Weights) -> dict[str, Json]:
    """An update as the transcript has it."""
    return {"digest": change.digest, "norm": change.norm}


def _left(run: str, round_number: int, *kinds: str) -> Any:
    return select(DepartureRow.sha256).where(
        DepartureRow.run == run,
        DepartureRow.round == round_number,
        DepartureRow.kind.in_(kinds),
    )


def _summary(header: wire.RequestHeader | wire.UpdateHeader | wire.Refusal) -> dict[str, Any]:
    """What a steward wants to see of what left: its fields, without the tensors' names."""
    fields = header.model_dump(
        mode="json", exclude={"change", "adapter", "kind", "run", "round"}
    )
    if isinstance(header, wire.UpdateHeader):
        shapes = header.change.shapes
        fields["tensors"] = len(shapes)
    return {name: value for name, value in fields.items() if value is not None}
