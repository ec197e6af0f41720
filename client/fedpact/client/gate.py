"""The only door out of the house: what may leave, and what was seen leaving.

Nothing is sent but what `release`, `refuse` or `resend` returned, and in this order:

1. What is about to leave is exactly the tensors that the study trains, all values finite,
   within the norm that clipping and noise allow, with no metrics but those of the kind that may
   leave. The ledger holds what it costs.
2. For one round of a run, one update leaves. Asked again, the same bytes leave.
3. A refusal says which rule stood in the way; what it would say about the records
   themselves, the site's disk or what other studies have spent stays at home.
4. It is in the outbox, so that it can leave again, and in the departures, so that it can be
   seen, both on disk, before it is handed over. The transcript has a signed receipt.
5. Where the policy asks for it, it waits until a person has said that it may leave.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from fedpact.client.held import Held, HeldUpdates
from fedpact.client.ledger import receipts
from fedpact.client.tables import DepartureRow, exclusive, reading
from fedpact.common import wire
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import BudgetError, PolicyError, TrainingError, WireError
from fedpact.common.private_files import write_private
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


@dataclass(frozen=True)
class Allowed:
    """What may leave in a round: all of it follows from the study, and none from the records.

    Attributes:
        tensors: names and shapes of what the study trains.
        norm: the L2 norm that the change has at most (`norm_bound`).
        metrics: what metrics may leave: raw ones only where study and policy both say so.
        classes: for how many labels counts leave with them; 0: for none.
        seeded: whether noise came from a seed, so that no ε holds; the receipt says it.
    """

    tensors: Manifest
    norm: float = math.inf
    metrics: Literal["none", "private", "raw"] = "none"
    classes: int = 0
    seeded: bool = False


class Gate:
    """The door of one site.

    Args:
        engine: the site's database.
        outbox: the folder for the last packets that left.
    """

    def __init__(self, engine: Engine, outbox: Path) -> None:
        self._engine = engine
        self._outbox = outbox
        self.held = HeldUpdates(engine, outbox)

    def release(
        self, header: wire.UpdateHeader, change: Weights, allowed: Allowed
    ) -> wire.Packet:
        """Check an update, write it down and let it leave.

        Args:
            header: the update's header.
            change: the values that it describes.
            allowed: what may leave.

        Raises:
            PolicyError: it carries metrics, or another update has left for this round.
            BudgetError: the ledger does not hold what it costs.
            TrainingError: the change is not finite, or too large.
            WireError: the change is not what the study trains or the header describes.
            StorageError: it could not be written down, and stays.
        """
        _check(header, change, allowed)
        seen = _seen(change) | _insecure(allowed.seeded)
        return self._depart(header, wire.pack(header, change), seen=seen)

    def hold(self, header: wire.UpdateHeader, change: Weights, allowed: Allowed) -> None:
        """Check an update as `release` does, and keep it until a person has decided on it.

        Raises:
            FedpactError: as `release`.
        """
        _check(header, change, allowed)
        with reading(self._engine) as session:
            paid = _paid(session, header)
        summary = _summary(header) | _seen(change) | {"reserved": paid}
        summary |= _insecure(allowed.seeded)
        data = _bytes(wire.pack(header, change))
        self.held.hold(header.run, header.round, data, summary)

    def let_go(self, held: Held) -> wire.Packet | None:
        """Let a held update leave, after a person has said so: exactly the bytes that waited.

        Returns:
            the update; None if its bytes are lost.

        Raises:
            PolicyError: nobody has said that it may leave, or another has left for its round.
            BudgetError: the ledger does not hold what it costs.
            StorageError: it could not be written down, and stays.
        """
        if held.word != "release":
            raise PolicyError("No person here has released the update.")
        if (data := self.held.read(held)) is None:
            return None
        packet = _packet(data)
        header, change = wire.unpack(packet)
        seen = _seen(change) if change is not None else {}
        seen |= _insecure("insecure_seed" in held.summary) | {"released_by": "person"}
        left = self._depart(header, packet, seen=seen)
        self.held.gone(held)
        return left

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
            packet = _packet(self._path(run, round_number).read_bytes())
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
        data = _bytes(packet)
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
                assert isinstance(header, wire.UpdateHeader)  # noqa: S101 - for mypy
                paid = _paid(session, header)
                seen = {**seen, "epsilon": header.epsilon, "reserved": paid}
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


def _check(header: wire.UpdateHeader, change: Weights, allowed: Allowed) -> None:
    """Rule 1, but for what it costs."""
    if change.manifest != allowed.tensors:
        raise WireError("The update is not of exactly the tensors that the study trains.")
    if header.change != wire.ArrayInfo.of(change):
        raise WireError("The update's header does not describe its array.")
    if not change.is_finite():
        raise TrainingError("The update holds values that are not finite.")
    if change.norm > allowed.norm:
        raise TrainingError(
            f"The update's norm is {change.norm:.4g}; clipping and noise allow "
            f"{allowed.norm:.4g}."
        )
    agreed = (allowed.metrics, allowed.classes)
    if (said := header.metrics) is not None and (said.kind, said.classes) != agreed:
        raise PolicyError("The update carries metrics that the site does not let out.")


def _paid(session: Session, header: wire.UpdateHeader) -> list[dict[str, Json]]:
    """What the ledger holds for an update: its training, and its private metrics.

    Raises:
        BudgetError: it does not hold it.
    """
    found = receipts(session, header.run, header.round)
    wanted = {"training"}
    if header.metrics is not None and header.metrics.kind == "private":
        wanted.add("metrics")
    of_study = [one for one in found if one["study_digest"] == header.study_digest]
    if not wanted <= {str(one["kind"]) for one in of_study}:
        raise BudgetError(
            f"The ledger does not hold what round {header.round} of run {header.run} costs.",
            told="Nothing is reserved for this update.",
        )
    return [dict(one) for one in of_study]


def _bytes(packet: wire.Packet) -> bytes:
    """A packet as it lies in the outbox, and as its SHA-256 is taken."""
    return packet.header.encode() + b"\n" + packet.array


def _packet(data: bytes) -> wire.Packet:
    header, _, array = data.partition(b"\n")
    return wire.Packet(header=header.decode(), array=array)


def _seen(change: Weights) -> dict[str, Json]:
    """An update as the transcript has it."""
    return {"digest": change.digest, "manifest": change.manifest.digest, "norm": change.norm}


def _insecure(seeded: bool) -> dict[str, Json]:
    return {"insecure_seed": True} if seeded else {}


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
