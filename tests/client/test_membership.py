"""Telling members from others by what the model says of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpact.client.membership import attack, likelihood_ratio, separation
from fedpact.client.trainer import Trainer
from fedpact.client.workbench import Workbench
from fedpact.common.errors import DataError, UsageError
from fedpact.common.records import EncodedRecords
from support.persons import person_study
from support.site_factory import INSTITUTION


@given(
    st.integers(4, 40).flatmap(
        lambda n: st.tuples(
            arrays(float, n, elements=st.integers(-5, 5)),
            arrays(bool, n).filter(lambda flags: flags.any() and not flags.all()),
        )
    )
)
def test_auc_is_the_share_of_pairs_in_the_right_order(case):
    scores, members = case
    inside, outside = scores[members][:, None], scores[~members][None]
    pairs = (inside > outside).mean() + (inside == outside).mean() / 2
    found = separation(scores, members)
    assert found.auc == pytest.approx(pairs)
    # So few records allow no false accusation at 1 %.
    assert found.tpr == pytest.approx((scores[members] > scores[~members].max()).mean())


def test_one_in_a_hundred_may_be_accused_falsely():
    others, members = np.arange(200.0), np.array([150.0, 197.5, 300.0, 198.5])
    flags = np.arange(204) >= 200
    assert separation(np.concatenate((others, members)), flags).tpr == pytest.approx(3 / 4)


def test_likelihood_ratio_finds_what_a_threshold_on_the_loss_cannot():
    """Records differ in how hard they are by more than membership changes their loss."""
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 3, 2000)

    def losses(members):
        return np.log1p(np.exp(hardness - 1.0 * members + rng.normal(0, 0.3, 2000)))

    def half():
        return rng.permutation(2000) < 1000

    target, one, other = half(), half(), half()
    halves = np.array([one, ~one, other, ~other])
    scores = likelihood_ratio(losses(target), np.array([losses(h) for h in halves]), halves)
    by_ratio, by_loss = separation(scores, target), separation(-losses(target), target)
    assert by_ratio.auc > 0.9
    assert by_loss.auc < 0.65
    assert by_ratio.tpr > 5 * by_loss.tpr


def nonsense(tiny, count=60):
    """Records whose labels follow from nothing: what is known of them was learned by heart."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(5, 20, 10).tolist() for _ in range(count)]
    return EncodedRecords.from_lists(ids, rng.integers(0, 2, count).tolist())


def learning_by_heart(tiny, mechanism):
    return tiny.study(
        adapter={"r": 8, "lora_alpha": 16},
        training={"rounds": 15, "local_steps": 4, "batch_size": 30, "learning_rate": 0.02},
        privacy={"mechanism": mechanism, "target_epsilon": 1.0},
        institutions=[{"name": INSTITUTION, "sector": "academia", "records": 60}],
    )


def test_training_without_privacy_gives_members_away_and_dp_sgd_does_not(tiny):
    def found(mechanism):
        rng = np.random.default_rng(2)
        study = learning_by_heart(tiny, mechanism)
        return attack(
            study, INSTITUTION, nonsense(tiny), Workbench(rng=rng), shadows=2, rng=rng
        )

    plain, private = found("none"), found("dp-sgd")
    assert plain.units == private.units == 60
    assert plain.by_loss.auc > 0.85
    assert plain.by_ratio.auc > 0.7
    assert 0.25 < private.by_loss.auc < 0.75
    assert 0.25 < private.by_ratio.auc < 0.75


def test_persons_are_members_whole_and_told_by_all_they_wrote(tiny):
    """Five records each: trained on without their person, none of them is told by the others."""
    rng = np.random.default_rng(2)
    records = replace(nonsense(tiny), persons=np.arange(60) % 12)
    plain = attack(
        learning_by_heart(tiny, "none"),
        INSTITUTION,
        records,
        Workbench(rng=rng),
        shadows=2,
        rng=rng,
    )
    assert plain.units == 12
    assert plain.by_loss.auc > 0.9
    assert plain.by_ratio.auc > 0.7


def test_members_are_trained_on_with_all_their_records_and_others_with_none(tiny, monkeypatch):
    trained = []
    train = Trainer.train

    def spying(self, received, records, how, rng=None):
        trained.append(np.unique(records.persons, return_counts=True))
        return train(self, received, records, how, rng)

    monkeypatch.setattr(Trainer, "train", spying)
    records = replace(nonsense(tiny), persons=np.arange(60) % 12)
    study = person_study(tiny, training={"rounds": 1})
    found = attack(study, INSTITUTION, records, Workbench(), shadows=2)
    assert found.units == 12
    target, shadow, other = trained
    for persons, counts in trained:
        assert (len(persons), set(counts)) == (6, {5})
    assert set(shadow[0]) | set(other[0]) == set(range(12))
    assert len(target[0]) == 6


def test_what_cannot_be_measured_is_refused(tiny):
    study, workbench = tiny.study(), Workbench()
    with pytest.raises(UsageError, match="pairs"):
        attack(study, INSTITUTION, nonsense(tiny), workbench, shadows=3)
    with pytest.raises(DataError, match="5 records"):
        attack(study, INSTITUTION, nonsense(tiny, 5), workbench)
