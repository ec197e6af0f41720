"""Central DP: what the coordinator clips and what it adds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpact.common.adapter import Weights
from fedpact.server import aggregation
from fedpact.server.aggregation import Standing
from fedpact.server.aggregation.clipped import Clipped, Clipping
from support.round_fakes import lora_weights, study_among


def central(rng=0, names="AB", **asked):
    study = study_among(*names, aggregation={"clip_norm": 1.0, **asked})
    return study, Clipping(study, np.random.default_rng(rng))


def one_round(study, clipping, changes, manifest=None):
    manifest = manifest or Weights.from_tensors({"w": np.zeros(len(changes[0]))}).manifest
    total = Clipped(manifest, clipping)
    for change in changes:
        weight = study.size(study.institutions[0])
        total.add(Weights(manifest, np.asarray(change, dtype=np.float32)), weight)
    return total.result().flat


vectors = st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3)


@given(others=st.lists(vectors, min_size=1, max_size=3), one=vectors)
def test_one_institution_moves_the_clipped_mean_by_its_share_at_most(others, one):
    study, clipping = central(names="ABCD")
    without = one_round(study, clipping, others)
    there = one_round(study, clipping, [*others, one])
    assert np.linalg.norm(there.astype(float) - without) <= 1 / 4 * (1 + 1e-5)


def test_what_is_short_is_not_clipped_and_what_is_missing_counts_as_zero():
    study, clipping = central()
    np.testing.assert_allclose(one_round(study, clipping, [[0.5, 0.0]]), [0.25, 0.0])
    np.testing.assert_allclose(one_round(study, clipping, [[3.0, 4.0]] * 2), [0.6, 0.8])


def test_larger_institutions_count_more_and_none_beyond_the_norm():
    study = study_among("A", "B", aggregation={"clip_norm": 1.0})
    sizes = [{"records": 300}, {"records": 100}]
    study = study.with_institutions(
        tuple(i.model_copy(update=n) for i, n in zip(study.institutions, sizes, strict=True))
    )
    manifest = Weights.from_tensors({"w": np.zeros(1)}).manifest
    total = Clipped(manifest, Clipping(study, np.random.default_rng(0)))
    total.add(Weights(manifest, np.float32([5.0])), 300)
    total.add(Weights(manifest, np.float32([-1.0])), 100)
    np.testing.assert_allclose(total.result().flat, [(300 - 100) / 400], rtol=1e-6)


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_the_noise_is_what_the_study_says(quantile):
    study, clipping = central(noise_multiplier=2.0, target_quantile=quantile)
    manifest = Weights.from_tensors({"w": np.zeros(20_000)}).manifest
    change = one_round(study, clipping, [np.zeros(20_000)], manifest)
    # Counting spends a sixteenth of the privacy: their Theorem 1 with 2z on the count.
    factor = 1.0 if quantile is None else (1 - 1 / 16) ** -0.5
    assert abs(change.std() / (2.0 * factor / 2) - 1) < 0.03


@pytest.mark.parametrize("first", [0.01, 100.0])
def test_the_norm_comes_to_the_quantile_that_was_asked_for(first):
    names = [f"i{n}" for n in range(50)]
    study = study_among(*names, aggregation={"clip_norm": first, "target_quantile": 0.6})
    clipping = Clipping(study, np.random.default_rng(0))
    for _ in range(200):
        one_round(study, clipping, [[float(n), 0.0] for n in range(1, 51)])
    assert 25 < clipping.norm < 35


def test_noise_without_a_norm_is_no_study():
    with pytest.raises(ValidationError, match="need `clip_norm`"):
        study_among("A", aggregation={"noise_multiplier": 1.0})


# In a round, whatever the method


def after(study, clipping, changes, number=1):
    total = aggregation.Round(study, Standing(lora_weights(0.5)), number, clipping)
    trained = aggregation.trained_manifest(study, lora_weights().manifest, number)
    for value in changes:
        change = np.full(trained.size, value, dtype=np.float32)
        total.add(Weights(trained, change), study.size(study.institutions[0]))
    return total.result()


@pytest.mark.parametrize(
    "choice",
    [
        {"method": "ffa-lora"},
        {"method": "fedavg"},
        {"method": "rolora"},
        {"method": "fedsvd"},
        {"server_optimizer": "momentum"},
    ],
    ids=lambda choice: "-".join(choice.values()),
)
@pytest.mark.parametrize("number", [1, 2])
def test_every_round_is_made_of_the_noised_mean_of_what_was_clipped(choice, number):
    """With the same noise, updates that clipping makes the same make the same adapter."""
    one, other = (
        after(*central(7, noise_multiplier=1.0, **choice), [value, value], number)
        for value in (100.0, 3e6)
    )
    np.testing.assert_allclose(one.adapter.flat, other.adapter.flat, atol=1e-5)
    quiet = after(*central(**choice), [100.0, 100.0], number)
    assert np.abs(one.adapter.flat - quiet.adapter.flat).max() > 0.05


def test_fedsvd_keeps_the_product_of_the_noised_mean():
    names = lora_weights().manifest.names[:2]
    found = {}
    for method in ("ffa-lora", "fedsvd"):
        study, clipping = central(3, noise_multiplier=1.0, method=method)
        tensors = after(study, clipping, [1.0, 2.0]).adapter.tensors()
        found[method] = tensors[names[1]] @ tensors[names[0]]
    np.testing.assert_allclose(found["fedsvd"], found["ffa-lora"], atol=1e-6)


def test_a_study_that_clips_is_never_aggregated_without_the_runs_norm():
    study, _ = central()
    with pytest.raises(ValueError, match="needs the run's clipping"):
        aggregation.Round(study, Standing(lora_weights()), 1)


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"method": "flexlora"}, "would not reach them"),
        ({"robust": "norm-bounding", "norm_bound": 1.0}, "not a mean of clipped"),
        ({"robust": "median"}, "not a mean of clipped"),
    ],
)
def test_what_one_institution_could_move_by_more_is_refused(choice, why):
    with pytest.raises(ValidationError, match=why):
        central(names="ABC", **choice)
