"""Whether a site's reply counts. Pure: takes a reply, returns what to do with it.

A reply counts when (1) it is an update, (2) of this run, round and study, (3) with exactly
the tensors that this study trains, (4) all of them finite. Anything else is set aside, and
the reason names what was wrong.
"""

from dataclasses import dataclass

from fedpact.common import wire
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import WireError


@dataclass(frozen=True)
class Expected:
    """What a reply of this round must fit."""

    run: str
    round: int
    study_digest: str
    trained: Manifest
    site_metrics: bool


@dataclass(frozen=True)
class Admitted:
    """An update that counts."""

    header: wire.UpdateHeader
    change: Weights


@dataclass(frozen=True)
class SetAside:
    """A reply that does not count: `refused` by the site itself, or `rejected` here."""

    state: str
    reason: str


def admit(packet: wire.Packet, expected: Expected) -> Admitted | SetAside:
    """Check one reply."""
    try:
        header, change = wire.unpack(packet)
    except WireError as error:
        return SetAside("rejected", str(error))
    if isinstance(header, wire.Refusal):
        return SetAside("refused", f"{header.code}: {header.reason}")
    if not isinstance(header, wire.UpdateHeader) or change is None:
        return SetAside("rejected", "The reply is not an update.")
    if (header.run, header.round) != (expected.run, expected.round):
        return SetAside("rejected", f"The update is for {header.run} round {header.round}.")
    if header.study_digest != expected.study_digest:
        return SetAside("rejected", "The update is for another study's digest.")
    if change.manifest != expected.trained:
        return SetAside("rejected", "The update does not have the shape of the adapter.")
    if not change.is_finite():
        return SetAside("rejected", "The update holds values that are not finite.")
    if header.metrics is not None and not expected.site_metrics:
        return SetAside("rejected", "The update carries metrics that the study does not allow.")
    return Admitted(header, change)
