"""Whether a site's reply counts. Pure: takes a reply, returns what to do with it.

A reply counts when (1) it is an update, (2) of this run, round and study, (3) with exactly
the tensors that this study trains, (4) all of them finite, (5) with the steps, the ε and the
metrics that the study allows. Anything else is set aside, and
the reason names what was wrong.
"""

from dataclasses import dataclass
from typing import Literal

from fedpact.common import wire
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import WireError

# What rounding may add to a sum of steps that was planned to cost exactly the target.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class Expected:
    """What a reply of this round must fit.

    Attributes:
        run: the run's identifier.
        round: the round, from 1.
        study_digest: of the study that runs.
        trained: names and shapes of what the study trains.
        site_metrics: which metrics the study asks for.
        steps: steps that a site takes in a round, at most.
        epsilon: ε that the run may cost a site; None without DP.
        classes: for how many labels metrics count; 0: for none.
    """

    run: str
    round: int
    study_digest: str
    trained: Manifest
    site_metrics: Literal["none", "private", "raw"]
    steps: int
    epsilon: float | None
    classes: int = 0


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
    if reason := _wrong(header, change, expected):
        return SetAside("rejected", reason)
    return Admitted(header, change)


def _wrong(header: wire.UpdateHeader, change: Weights, expected: Expected) -> str:
    """Why an update does not count; empty: it does."""
    if (header.run, header.round) != (expected.run, expected.round):
        return f"The update is for {header.run} round {header.round}."
    if header.study_digest != expected.study_digest:
        return "The update is for another study's digest."
    if change.manifest != expected.trained:
        return "The update does not have the shape of the adapter."
    if not change.is_finite():
        return "The update holds values that are not finite."
    if header.steps > expected.steps:
        return f"The update is of more than {expected.steps} steps."
    if (header.epsilon is None) != (expected.epsilon is None):
        return "The update states an ε without DP, or none with it."
    if header.epsilon is not None and header.epsilon > (expected.epsilon or 0.0) * _ROUNDING:
        return "The update has cost more ε than its study allows."
    asked = (expected.site_metrics, expected.classes)
    if (said := header.metrics) is not None and (said.kind, said.classes) != asked:
        return "The update carries metrics that the study does not allow."
    return ""
