"""What coordinator and site say to each other in a round.

One request goes to a site, one reply comes back: an update or a refusal. Each is a JSON
header and at most one flat array; neither is ever a pickle. Everything about a message is
checked when it arrives, before anything is done with it: version, fields, sizes, digests.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import WireError
from fedpact.common.study_words import MAX_STEPS, Digest
from fedpact.common.task_section import MAX_LABELS

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


@dataclass(frozen=True)
class Leaves:
    """What a field tells when it leaves a site, and what makes that harmless.

    The list of all of them is closed: `docs/reference/what-leaves.md` is written from it.

    Attributes:
        by: public: known without the records; dp-sgd: noised in training, or computed from
            what was; gaussian: a noisy sum that the ledger pays for; refusal: tells at most
            which rule stood in the way.
        what: what it is.
    """

    by: Literal["public", "dp-sgd", "gaussian", "refusal"]
    what: str


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    protocol: Annotated[Literal[1], Leaves("public", "The protocol's version.")] = PROTOCOL
    run: Annotated[
        str,
        Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$"),
        Leaves("public", "The run, as the request named it."),
    ]
    round: Annotated[
        int, Field(ge=1, le=MAX_ROUND), Leaves("public", "The round, as the request named it.")
    ]
    study_digest: Annotated[
        Digest, Leaves("public", "The study's digest, as the request named it.")
    ]


# Bounded too, so that sums over sites stay finite.
_Count = Annotated[float, Field(ge=-1e12, le=1e12)]
_TensorName = Annotated[str, Field(max_length=500)]
# Bounded, so that a size that a peer made up is a number of ordinary length.
_Shape = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MAX_VALUES)], ...], Field(max_length=MAX_DIMENSIONS)
]


class ArrayInfo(BaseModel):
    """Names, shapes and SHA-256 of the flat array that goes with a header."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: Annotated[
        tuple[_TensorName, ...],
        Field(max_length=MAX_TENSORS),
        Leaves("public", "The tensors that the study trains."),
    ]
    shapes: Annotated[
        tuple[_Shape, ...], Field(max_length=MAX_TENSORS), Leaves("public", "Their shapes.")
    ]
    sha256: Annotated[Digest, Leaves("dp-sgd", "SHA-256 of the array.")]

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
    """Loss and accuracy on a site's own records, and per class where the study asks for it.

    Where the study promises to persons, read person for record: each counts once, by the mean over
    their records.

    Attributes:
        kind: private, with noise that ε pays for; or raw, which is NOT PRIVATE and sent only by
            double consent.
        loss: mean over the records; clipped record by record, if private.
        accuracy: the mean of the task's score, in [0, 1]; noise may take it below 0 or above 1.
        loss_noise: the noise's standard deviation in `loss`; 0 if raw.
        accuracy_noise: the same in `accuracy`.
        right: per label of the study, how many are predicted right; noise may take it below 0. Empty
            without classes.
        wrong: the same of those that are predicted wrong.
        count_noise: the noise's standard deviation in each of these; 0 without classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Annotated[
        Literal["private", "raw"], Leaves("public", "Which kind the study asks for.")
    ]
    loss: Annotated[
        float,
        Leaves(
            "gaussian",
            "Sum of the clipped losses, over the expected number of records. If the kind is raw: "
            "the mean loss, NOT PRIVATE.",
        ),
    ]
    accuracy: Annotated[
        float,
        Leaves(
            "gaussian",
            "Sum of the task's scores (1 for a right prediction, 0 for a wrong one), over the "
            "expected number of records. If the kind is raw: their mean, NOT PRIVATE.",
        ),
    ]
    loss_noise: Annotated[
        float,
        Field(ge=0),
        Leaves("public", "Standard deviation of the noise in the loss."),
    ] = 0.0
    accuracy_noise: Annotated[
        float,
        Field(ge=0),
        Leaves("public", "Standard deviation of the noise in the accuracy."),
    ] = 0.0
    right: Annotated[
        tuple[_Count, ...],
        Field(max_length=MAX_LABELS),
        Leaves("gaussian", "Number of right predictions among each label's records."),
    ] = ()
    wrong: Annotated[
        tuple[_Count, ...],
        Field(max_length=MAX_LABELS),
        Leaves("gaussian", "Number of wrong predictions among each label's records."),
    ] = ()
    count_noise: Annotated[
        float,
        Field(ge=0, le=1e12),
        Leaves("public", "Standard deviation of the noise in each of these numbers."),
    ] = 0.0

    @model_validator(mode="after")
    def _both_for_each_label(self) -> Self:
        if len(self.right) != len(self.wrong):
            raise ValueError("`right` and `wrong` are not for the same labels")
        return self

    @property
    def classes(self) -> int:
        """For how many labels there are counts."""
        return len(self.right)


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

    kind: Annotated[Literal["update"], Leaves("public", "That it is an update.")] = "update"
    change: ArrayInfo
    epsilon: Annotated[
        Annotated[float, Field(ge=0)] | None,
        Leaves(
            "public",
            "ε that the run has cost here: follows from noise, sampling rate and steps.",
        ),
    ]
    steps: Annotated[
        int,
        Field(ge=0, le=MAX_STEPS),
        Leaves("public", "Steps of this round, as the study says."),
    ]
    metrics: SiteMetrics | None = None


class Refusal(_Header):
    """Why a site did not do what was asked; it has no array."""

    kind: Annotated[Literal["refusal"], Leaves("refusal", "That it is one.")] = "refusal"
    code: Annotated[
        Literal["study", "policy", "budget", "data", "model", "message", "training"],
        Leaves("refusal", "Which kind of rule stood in the way."),
    ]
    reason: Annotated[
        str,
        Field(max_length=MAX_REASON),
        AfterValidator(_one_line),
        Leaves("refusal", "Why, without what must stay at home."),
    ]


Header = Annotated[RequestHeader | UpdateHeader | Refusal, Field(discriminator="kind")]
_HEADER: TypeAdapter[RequestHeader | UpdateHeader | Refusal] = TypeAdapter(Header)


class Packet(BaseModel):
    """A message as bytes: what any transport carries."""

    model_config = ConfigDict(frozen=True)

    header: str
    array: Annotated[
        bytes,
        Leaves(
            "dp-sgd",
            "What training changed in each tensor. NOT PRIVATE where the study "
            'says `mechanism = "none"`.',
        ),
    ] = b""

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


def what_leaves(header: type[BaseModel]) -> dict[str, Leaves]:
    """Every field of a header that a site sends, by its path, and the array if one goes with it.

    Raises:
        WireError: a field does not say what it tells.
    """
    fields = _leaving(header, "")
    if "change" in header.model_fields:
        fields["(array)"] = _leaves(Packet, "array")
    return fields


def _leaving(model: type[BaseModel], prefix: str) -> dict[str, Leaves]:
    found: dict[str, Leaves] = {}
    for name, field in model.model_fields.items():
        parts = (field.annotation, *get_args(field.annotation))
        inner = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
        if inner:
            found |= _leaving(inner[0], f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = _leaves(model, name)
    return found


def _leaves(model: type[BaseModel], name: str) -> Leaves:
    for entry in model.model_fields[name].metadata:
        if isinstance(entry, Leaves):
            return entry
    raise WireError(f"{model.__name__}.{name} does not say what it tells when it leaves.")


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
