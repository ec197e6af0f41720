"""What coordinator and site say to each other in a round.

One request goes to a site, one reply comes back: an update or a refusal. Each is a JSON
header and at most one flat array; neither is ever a pickle. Everything about a message is
checked when it arrives, before anything is done with it: version, fields, sizes, digests.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import WireError
from fedpact.common.study import MAX_STEPS, Digest

PROTOCOL: Final = 1
# The record of a transport's message that holds a packet's fields.
RECORD = "fedpact"
MAX_VALUES = 500_000_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_STUDY = 4_000_000  # characters
MAX_REASON = 2000  # characters
MAX_ROUND = 2**31 - 1  # what a database's integer holds


def _one_line(text: str) -> str:
    """Text as it may stand in a log or terminal: what would steer one becomes a space."""
    return "".join(character if character.isprintable() else " " for character in text)


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    protocol: Literal[1] = PROTOCOL
    run: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    round: Annotated[int, Field(ge=1, le=MAX_ROUND)]
    study_digest: Digest


_TensorName = Annotated[str, Field(max_length=500)]
# Bounded, so that a size that a peer made up is a number of ordinary length.
_Shape = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MAX_VALUES)], ...], Field(max_length=MAX_DIMENSIONS)
]


class ArrayInfo(BaseModel):
    """Names, shapes and SHA-256 of the flat array that goes with a header."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: Annotated[tuple[_TensorName, ...], Field(max_length=MAX_TENSORS)]
    shapes: Annotated[tuple[_Shape, ...], Field(max_length=MAX_TENSORS)]
    sha256: Digest

    @classmethod
    def of(cls, weights: Weights) -> Self:
        """Describe weights that are about to be sent."""
        return cls(
            names=weights.manifest.names,
            shapes=weights.manifest.shapes,
            sha256=hashlib.sha256(weights.to_bytes()).hexdigest(),
        )

    def read(self, data: bytes) -> Weights:
        """Check the bytes that came and give them their names.

        Raises:
            WireError: the manifest is inconsistent or too large, or the bytes are others.
        """
        if len(self.names) != len(self.shapes) or len(set(self.names)) != len(self.names):
            raise WireError("The manifest names and shapes do not belong together.")
        manifest = Manifest(self.names, self.shapes)
        if manifest.size > MAX_VALUES:
            raise WireError(f"The array has {manifest.size} values, more than {MAX_VALUES}.")
        weights = Weights.from_bytes(manifest, data)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise WireError("The array does not have the SHA-256 that its header says.")
        return weights


class RequestHeader(_Header):
    """The header of an update request."""

    kind: Literal["request"] = "request"
    study: Annotated[str, Field(max_length=MAX_STUDY)]
    adapter: ArrayInfo


class SiteMetrics(BaseModel):
    """Loss and accuracy on a site's own records.

    Attributes:
        kind: private, with noise that ε pays for; or raw, which is NOT PRIVATE and sent only by
            double consent.
        loss: mean over the records; clipped record by record, if private.
        accuracy: the share that is right; noise may take it below 0 or above 1.
        loss_noise: the noise's standard deviation in `loss`; 0 if raw.
        accuracy_noise: the same in `accuracy`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["private", "raw"]
    loss: float
    accuracy: float
    loss_noise: Annotated[float, Field(ge=0)] = 0.0
    accuracy_noise: Annotated[float, Field(ge=0)] = 0.0


class UpdateHeader(_Header):
    """The header of an update.

    Attributes:
        change: what training changed in each trainable tensor.
        epsilon: what the run has cost so far at this site, at the study's δ; a function of
            public numbers (noise, sampling rate, steps) and so no secret. None without DP.
        steps: optimiser steps taken in this round.
        metrics: private metrics where the study asks for them; raw ones only where study and
            site policy both say so.
    """

    kind: Literal["update"] = "update"
    change: ArrayInfo
    epsilon: Annotated[float, Field(ge=0)] | None
    steps: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    metrics: SiteMetrics | None = None


class Refusal(_Header):
    """Why a site did not do what was asked; it has no array."""

    kind: Literal["refusal"] = "refusal"
    code: Literal["study", "policy", "budget", "data", "model", "message", "training"]
    reason: Annotated[str, Field(max_length=MAX_REASON), AfterValidator(_one_line)]


Header = Annotated[RequestHeader | UpdateHeader | Refusal, Field(discriminator="kind")]
_HEADER: TypeAdapter[RequestHeader | UpdateHeader | Refusal] = TypeAdapter(Header)


class Packet(BaseModel):
    """A message as bytes: what any transport carries."""

    model_config = ConfigDict(frozen=True)

    header: str
    array: bytes = b""

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Self:
        """Read the two fields from what a transport brought; anything else is left empty."""
        header, array = fields.get("header"), fields.get("array")
        return cls(
            header=header if isinstance(header, str) and _is_text(header) else "",
            array=array if isinstance(array, bytes) else b"",
        )

    def fields(self) -> dict[str, str | bytes]:
        """The two fields by name, as `of` reads them."""
        return {"header": self.header, "array": self.array}

    @property
    def size(self) -> int:
        """Bytes of header and array."""
        return len(self.header.encode()) + len(self.array)


def pack(header: RequestHeader | UpdateHeader | Refusal, weights: Weights | None) -> Packet:
    """Make a message of a header and the weights it describes."""
    return Packet(header=header.model_dump_json(), array=weights.to_bytes() if weights else b"")


def unpack(
    packet: Packet,
) -> tuple[RequestHeader | UpdateHeader | Refusal, Weights | None]:
    """Check a message that came in.

    Returns:
        the header, and the weights it describes (None for a refusal).

    Raises:
        WireError: the header is not one of ours, or the array is not what it says.
    """
    try:
        header = _HEADER.validate_json(packet.header)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WireError(
            _one_line(
                f"The message's header is not valid: {place[:200]}: {first['msg'][:500]}."
            )
        ) from error
    if _says_twice(packet.header):
        raise WireError("The message's header says something twice.")
    match header:
        case RequestHeader():
            return header, header.adapter.read(packet.array)
        case UpdateHeader():
            return header, header.change.read(packet.array)
        case Refusal():
            if packet.array:
                raise WireError("A refusal came with an array.")
            return header, None


def _is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _says_twice(header: str) -> bool:
    """Whether an object in a header that was read has the same key twice: two may differ."""
    repeated = False

    def note(pairs: list[tuple[str, object]]) -> None:
        nonlocal repeated
        repeated |= len({key for key, _ in pairs}) != len(pairs)

    json.loads(header, object_pairs_hook=note)
    return repeated
