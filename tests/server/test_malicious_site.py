"""A site that cheats, at the coordinator's round loop: its reply changes nothing but its own row.

Each case is what one of three institutions answers. The other two make the round, the reason
is written down in words that no terminal acts on, and nothing the liar said of itself is kept.
"""

import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.server.round_needs import Answer, Terms
from fedpact.server.rounds import Conductor
from support import liar
from support.liar import Asked
from support.round_fakes import FakeClock, FakeExchange, FakeRecord, lora_weights, study_among

START = lora_weights(0.5)
NAMES = ("A", "B", "C")
Site = Callable[[wire.Packet], wire.Packet]


def says(**fields: object) -> Site:
    """An update whose header, as JSON, says something else."""

    def answer(packet: wire.Packet) -> wire.Packet:
        reply = liar.honest(100.0)(packet)
        header = json.dumps({**json.loads(reply.header), **fields})
        return wire.Packet(header=header, array=reply.array)

    return answer


def describes(**fields: object) -> Site:
    """An update that describes its array otherwise."""

    def answer(packet: wire.Packet) -> wire.Packet:
        reply = liar.honest(100.0)(packet)
        header = json.loads(reply.header)
        header["change"] = {**header["change"], **fields}
        return wire.Packet(header=json.dumps(header), array=reply.array)

    return answer


def refuses(**fields: object) -> Site:
    def answer(packet: wire.Packet) -> wire.Packet:
        header = json.loads(liar.refusing(packet).header)
        return wire.Packet(header=json.dumps({**header, **fields}))

    return answer


def other_names(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    tensors = asked.full_of(100.0).tensors()
    named = {f"{name}\x1b[2J": tensor for name, tensor in tensors.items()}
    return asked.update(Weights.from_tensors(named))


def other_order(packet: wire.Packet) -> wire.Packet:
    asked = Asked.of(packet)
    tensors = asked.full_of(100.0).tensors()
    return asked.update(Weights.from_tensors(dict(reversed(tensors.items()))))


def says_twice(packet: wire.Packet) -> wire.Packet:
    reply = liar.honest(100.0)(packet)
    header = reply.header.replace('"steps":1', '"steps":9,"steps":1')
    return wire.Packet(header=header, array=reply.array)


def doubles(packet: wire.Packet) -> wire.Packet:
    reply = liar.honest(100.0)(packet)
    return wire.Packet(header=reply.header, array=np.ones(len(reply.array) // 4).tobytes())


def nested(_packet: wire.Packet) -> wire.Packet:
    return wire.Packet(header='{"a":' * 100_000 + "1" + "}" * 100_000)


LIES: dict[str, Site] = {
    **{lie.__name__: lie for lie in liar.REJECTED},
    "no noise, it says": says(epsilon=None),
    "more than the study may cost": says(epsilon=8.01),
    "an epsilon that is not a number": says(epsilon="NaN"),
    "an infinite epsilon": says(epsilon=float("inf")),
    "an epsilon below zero": says(epsilon=-0.1),
    "more steps than were asked": says(steps=2),
    "steps beyond numbers": says(steps=10**30),
    "another protocol": says(protocol=2),
    "code": says(code="import os"),
    "a key that steers a terminal": says(**{"\x1b[2J": 1}),
    "a run that steers a terminal": says(run="r1\x1b[2J"),
    "the name of another institution": says(institution="A"),
    "metrics that are not numbers": says(metrics={"loss": float("nan"), "accuracy": 1.0}),
    "a terabyte": describes(names=["x"], shapes=[[500_000, 500_000]]),
    "more values than a number has digits": describes(names=["x"], shapes=[[10**4000] * 3]),
    "a tensor of many dimensions": describes(names=["x"], shapes=[[1] * 1000]),
    "a tensor twice": describes(names=["x", "x"], shapes=[[4, 2], [2]]),
    "names that steer a terminal": other_names,
    "another order": other_order,
    "something twice": says_twice,
    "doubles": doubles,
    "nested deep": nested,
    "a refusal of ten megabytes": refuses(reason="x" * 10_000_000),
    "a refusal without a known code": refuses(code="boredom"),
}


def conduct(liar_b: Site) -> tuple[FakeRecord, Weights]:
    sites = {**dict.fromkeys(NAMES, liar.honest()), "B": liar_b}
    study = study_among(*NAMES, federation={"quorum": 2, "deadline_seconds": 60.0})
    record = FakeRecord()
    exchange, terms = FakeExchange(sites), partial(Terms.all_of, study)
    conductor = Conductor(study, "r1", exchange, record, terms, clock=FakeClock())
    return record, conductor.conduct(START)


HONEST = conduct(liar.refusing)[1]


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_set_aside_and_the_others_make_the_round(lie):
    record, weights = conduct(LIES[lie])
    assert weights.digest == HONEST.digest
    for number in (1, 2, 3):
        assert record.states(number) == {"A": "updated", "B": "rejected", "C": "updated"}
        answer = record.answers[number]["B"]
        assert answer.reason.isprintable()
        assert 0 < len(answer.reason) < 1000
        kept = Answer("rejected", answer.reason, bytes_in=answer.bytes_in)
        assert answer == kept, "something that the liar said of itself"


def test_a_refusal_cannot_steer_whoever_reads_it():
    record, weights = conduct(refuses(reason="Not here.\x1b[2J\r\n[bold]A: updated\u202e"))
    assert weights.digest == HONEST.digest
    answer = record.answers[1]["B"]
    assert answer.state == "refused"
    assert answer.reason.isprintable()
    assert answer.reason.startswith("policy: Not here.")


def test_the_update_of_the_round_before_counts_once():
    record, _ = conduct(liar.Replaying())
    assert [record.states(number)["B"] for number in (1, 2, 3)] == [
        "updated",
        "rejected",
        "rejected",
    ]


def test_an_update_cannot_outweigh_the_size_that_was_declared():
    """Its share is the study's, whatever it says of itself; how large it is, it chooses."""
    _, weights = conduct(liar.honest(4.0))
    change = weights.flat - START.flat
    trained = change[change != 0]
    assert trained == pytest.approx(3 * (1.0 + 4.0 + 1.0) / 3)
