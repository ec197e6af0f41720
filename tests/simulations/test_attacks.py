"""Bad sites in a simulation: what they send, and what rules bear of it."""

import numpy as np
import pytest

from fedpact.common import wire
from fedpact.common.errors import UsageError
from fedpact.simulations.attacks import KINDS, LARGER, Attack, Conspiracy
from fedpact.simulations.comparison import Variant
from fedpact.simulations.federation import deal
from support.comparisons import prepare, run
from support.liar import honest, refusing
from support.round_fakes import lora_weights, study_among
from support.tiny_bert import write_data

HONEST = (1.0, 2.0, 6.0)


@pytest.mark.parametrize("text", ["", "sign-flip", "sign-flip:0", "sign-flip:x", "shout:1"])
def test_what_is_no_attack_is_said(text):
    with pytest.raises(UsageError, match="is not an attack"):
        Attack.parse(text)


def request(number: int) -> wire.Packet:
    study, adapter = study_among("A", "B", "C", "D", "E"), lora_weights()
    header = wire.RequestHeader(
        run="r",
        round=number,
        study_digest=study.digest,
        study=study.canonical(),
        adapter=wire.ArrayInfo.of(adapter),
    )
    return wire.pack(header, adapter)


def sent(kind: str, number: int = 1, own: float = 3.0) -> list[np.ndarray]:
    """The changes of three honest sites, then of two bad ones."""
    conspiracy = Conspiracy(Attack(kind, 2), 5, seed=0)
    found = []
    for index, value in enumerate((*HONEST, own, own)):
        reply = conspiracy.around(index, honest(value))(request(number))
        header, change = wire.unpack(reply)  # its digest is that of what is sent
        assert header.round == number
        found.append(change.flat)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_honest_stay_as_they_are(kind):
    for change, value in zip(sent(kind), HONEST, strict=False):
        assert (change == value).all()


def test_each_attack_sends_what_it_says():
    assert (sent("label-flip")[4] == 3.0).all()  # honest work on wrong labels
    assert (sent("sign-flip")[4] == -LARGER * 3.0).all()
    np.testing.assert_allclose(sent("collusion")[3], -3.0)
    one, other = sent("noise")[3:]
    assert np.linalg.norm(one) == pytest.approx(LARGER * 3.0 * len(one) ** 0.5, rel=1e-4)
    assert (one != other).any()
    hidden = sent("little")[4]
    assert (np.min(HONEST) < hidden).all()
    assert (hidden <= np.mean(HONEST)).all()


def test_what_was_heard_is_of_this_round_alone():
    conspiracy = Conspiracy(Attack("collusion", 1), 2, seed=0)
    for number, value in ((1, 1.0), (2, 5.0)):
        conspiracy.around(0, honest(value))(request(number))
        _, change = wire.unpack(conspiracy.around(1, honest(0.0))(request(number)))
        assert (change.flat == -value).all()


def test_a_refusal_stays_one():
    packet = request(1)
    conspiracy = Conspiracy(Attack("sign-flip", 1), 2, seed=0)
    assert conspiracy.around(1, refusing)(packet) == refusing(packet)


def test_wrong_labels_are_those_of_the_bad_sites_alone(tiny, tmp_path):
    data = write_data(tmp_path / "data.csv", records=90)
    dealt = deal(tiny.study(institutions=[]), data, "iid", 3, 0, tmp_path / "sites")
    flipped = Attack("label-flip", 1).on_labels(dealt)
    wrong = np.flatnonzero(flipped.records.labels != dealt.records.labels)
    np.testing.assert_array_equal(wrong, dealt.shards[2].indices)
    with pytest.raises(UsageError, match="cannot be bad"):
        Attack("label-flip", 3).on_labels(dealt)


def test_a_median_bears_what_the_mean_does_not(tiny, tmp_path):
    study = prepare(
        tiny,
        tmp_path,
        training={"rounds": 4, "local_steps": 10},
        privacy={"mechanism": "none"},
        federation={"quorum": 3},
    )
    variants = [
        Variant(rule, {"aggregation.robust": rule}, attack="sign-flip:1")
        for rule in ("none", "median")
    ]
    found, _ = run(study, variants=variants, seeds=(0,), sites=3)
    mean, median = (variant.score.mean for variant in found.variants)
    assert median > 0.7 > mean
