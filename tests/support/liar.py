"""An institution that can lie, lag and replay.

Each behaviour makes a reply of a request, as a site's `answer` does; what the honest part of
it needs (names, shapes, digests) it takes from the request itself.
"""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedpact.common import wire
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.study import Study
from fedpact.server.aggregation import trained_manifest

Answer = Callable[[wire.Packet], wire.Packet]


@dataclass(frozen=True)
class Asked:
    """A request, taken apart."""

    header: wire.RequestHeader
    adapter: Weights
    trained: Manifest

    @classmethod
    def of(cls, packet: wire.Packet) -> "Asked":
        header, adapter = wire.unpack(packet)
        assert isinstance(header, wire.RequestHeader)
        assert adapter is not None
        study = Study.from_canonical(header.study)
        trained = trained_manifest(study, adapter.manifest, header.round)
        return cls(header, adapter, trained)

    def update(self, change: Weights, **fields: object) -> wire.Packet:
        """A whole update of `change`; `fields` of its header may lie."""
        values = {
            "run": self.header.run,
            "round": self.header.round,
            "study_digest": self.header.study_digest,
            "change": wire.ArrayInfo.of(change),
            "epsilon": 0.5,
            "steps": 1,
        }
        return wire.pack(wire.UpdateHeader.model_validate({**values, **fields}), change)

    def full_of(self, value: float) -> Weights:
        return Weights(self.trained, np.full(self.trained.size, value, dtype=np.float32))


def honest(value: float = 1.0) -> Answer:
    """A site whose every change is `value`."""

    def answer(packet: wire.Packet) -> wire.Packet:
        asked = Asked.of(packet)
        return asked.update(asked.full_of(value))

    return answer


def refusing(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    head = asked.header.model_dump(include={"run", "round", "study_digest"})
    refusal = wire.Refusal.model_validate({**head, "code": "policy", "reason": "Not here."})
    return wire.pack(refusal, None)


def not_a_number(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    change = asked.full_of(1.0)
    change.flat[0] = np.nan
    return asked.update(change)


def infinite(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    change = asked.full_of(1.0)
    change.flat[-1] = np.inf
    return asked.update(change)


def wrong_shape(packet: wire.Packet) -> wire.Packet:
    """As many values, but in other shapes."""
    asked = Asked.of(packet)
    tensors = asked.full_of(1.0).tensors()
    return asked.update(Weights.from_tensors({n: t.ravel() for n, t in tensors.items()}))


def too_few_tensors(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    return asked.update(asked.full_of(1.0).select(asked.trained.names[1:]))


def frozen_tensors_too(packet: wire.Packet) -> wire.Packet:
    """Also what the method does not train."""
    asked = Asked.of(packet)
    values = np.ones(asked.adapter.manifest.size, dtype=np.float32)
    return asked.update(Weights(asked.adapter.manifest, values))


def another_study(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    return asked.update(asked.full_of(1.0), study_digest="f" * 64)


def another_round(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    return asked.update(asked.full_of(1.0), round=asked.header.round + 1)


def another_run(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    return asked.update(asked.full_of(1.0), run="another")


def metrics_not_asked_for(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    metrics = {"kind": "raw", "loss": 0.1, "accuracy": 0.9}
    return asked.update(asked.full_of(1.0), metrics=metrics)


def counting_classes(packet: wire.Packet) -> wire.Packet:
    """Honest where the study asks for private metrics by class, of two labels."""
    asked = Asked.of(packet)
    metrics = {"kind": "private", "loss": 0.1, "accuracy": 0.9, "count_noise": 1.5}
    counts = {"right": (10.0, -1.0), "wrong": (2.0, 8.5)}
    return asked.update(asked.full_of(1.0), metrics=metrics | counts)


def garbage_header(packet: wire.Packet) -> wire.Packet:
    return wire.Packet(header='{"kind": "update", \x00', array=honest()(packet).array)


def unknown_field(packet: wire.Packet) -> wire.Packet:
    reply = honest()(packet)
    return wire.Packet(
        header=json.dumps({**json.loads(reply.header), "examples": 17}), array=reply.array
    )


def negative_epsilon(packet: wire.Packet) -> wire.Packet:
    reply = honest()(packet)
    return wire.Packet(
        header=json.dumps({**json.loads(reply.header), "epsilon": -1.0}), array=reply.array
    )


def truncated_array(packet: wire.Packet) -> wire.Packet:
    reply = honest()(packet)
    return wire.Packet(header=reply.header, array=reply.array[:-4])


def altered_array(packet: wire.Packet) -> wire.Packet:
    reply = honest()(packet)
    return wire.Packet(header=reply.header, array=reply.array[:-1] + b"\x7f")


def a_pickle(packet: wire.Packet) -> wire.Packet:
    """A pickle under a header that describes it as well as it can be described."""
    reply = honest()(packet)
    header = json.loads(reply.header)
    array = pickle.dumps(np.ones(3))
    header["change"]["sha256"] = hashlib.sha256(array).hexdigest()
    return wire.Packet(header=json.dumps(header), array=array)


def the_request_itself(packet: wire.Packet) -> wire.Packet:
    return packet


def nothing(_packet: wire.Packet) -> wire.Packet:
    """What Flower brings where a node's reply was an error."""
    return wire.Packet(header="")


class Replaying:
    """Sends its first update again in every later round."""

    def __init__(self) -> None:
        self._first: wire.Packet | None = None

    def __call__(self, packet: wire.Packet) -> wire.Packet:
        self._first = self._first or honest()(packet)
        return self._first


REJECTED: tuple[Answer, ...] = (
    not_a_number,
    infinite,
    wrong_shape,
    too_few_tensors,
    frozen_tensors_too,
    another_study,
    another_round,
    another_run,
    metrics_not_asked_for,
    garbage_header,
    unknown_field,
    negative_epsilon,
    truncated_array,
    altered_array,
    a_pickle,
    the_request_itself,
    nothing,
)
