"""Central DP: what the coordinator clips and what it adds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpact.common.adapter import Weights
from fedpact.server import aggregation
from fedpact.server.aggregation.clipped import Clipping
from support.round_fakes import study_among


def central(rng=0, names="AB", **asked):
    study = study_among(*names, aggregation={"clip_norm": 1.0, **asked})
    return study, Clipping(study, np.random.default_rng(rng))


def one_round(study, clipping, changes, manifest=None):
    manifest = manifest or Weights.from_tensors({"w": np.zeros(len(changes[0]))}).manifest
    total = aggregation.for_study(study, manifest, clipping)
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
    total = aggregation.for_study(
        study,
        Weights.from_tensors({"w": np.zeros(1)}).manifest,
        Clipping(study, np.random.default_rng(0)),
    )
    manifest = Weights.from_tensors({"w": np.zeros(1)}).manifest
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
