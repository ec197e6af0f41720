"""Updates become one change: what holds for every method, and what for each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import RunError
from fedpact.server import aggregation
from support.round_fakes import lora_weights, study_among

METHODS = ("fedavg", "ffa-lora")
MANIFEST = Manifest(("a", "b"), ((2, 3), (4,)))
VALUES = arrays.arrays(
    np.float32, MANIFEST.size, elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
)
UPDATES = st.lists(st.tuples(VALUES, st.integers(1, 10**6)), min_size=1, max_size=8)

pytestmark = pytest.mark.parametrize("method", METHODS)


def aggregate(method, updates, manifest=MANIFEST) -> np.ndarray:
    study = study_among("A", aggregation={"method": method})
    total = aggregation.for_study(study, manifest)
    for values, weight in updates:
        total.add(Weights(manifest, values), weight)
    result = total.result()
    assert result.manifest == manifest
    assert result.flat.dtype == np.float32
    return result.flat


@given(updates=UPDATES)
def test_it_is_the_weighted_mean(method, updates):
    values, weights = zip(*updates, strict=True)
    mean = np.average(np.array(values, dtype=np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(aggregate(method, updates), mean, rtol=1e-6, atol=1e-4)


@given(updates=UPDATES, order=st.randoms(use_true_random=False))
def test_the_order_in_which_updates_come_does_not_matter(method, updates, order):
    shuffled = order.sample(updates, len(updates))
    np.testing.assert_allclose(
        aggregate(method, updates), aggregate(method, shuffled), rtol=1e-6, atol=1e-6
    )


@given(updates=UPDATES, factor=st.floats(1e-3, 1e3))
def test_only_the_proportions_of_weights_matter(method, updates, factor):
    scaled = [(values, weight * factor) for values, weight in updates]
    np.testing.assert_allclose(
        aggregate(method, updates), aggregate(method, scaled), rtol=1e-6, atol=1e-6
    )


@given(values=VALUES, weight=st.integers(1, 10**6))
def test_one_update_is_its_own_mean(method, values, weight):
    np.testing.assert_allclose(aggregate(method, [(values, weight)]), values, rtol=1e-7)


def test_many_small_updates_are_not_lost_in_rounding(method):
    """A float32 sum of these stops growing at 2^24."""
    ones = np.ones(MANIFEST.size, dtype=np.float32)
    updates = [(ones * 2**24, 1)] + [(ones, 1)] * 999
    exact = (2**24 + 999) / 1000
    np.testing.assert_allclose(aggregate(method, updates), exact, rtol=1e-7)


def test_the_updates_added_are_left_as_they_were(method):
    values = np.arange(MANIFEST.size, dtype=np.float32)
    kept = values.copy()
    aggregate(method, [(values, 2), (values, 3)])
    np.testing.assert_array_equal(values, kept)


def test_a_round_without_an_update_has_no_result(method):
    with pytest.raises(RunError, match="no update"):
        aggregate(method, [])


def test_sites_train_what_the_method_trains(method):
    study = study_among("A", aggregation={"method": method})
    names = lora_weights().manifest.names
    trained = aggregation.trained_names(study, names)
    left_out = [name for name in names if ".lora_A." in name] if method == "ffa-lora" else []
    assert list(trained) == [name for name in names if name not in left_out]


def test_the_mean_of_factors_is_the_mean_of_products_where_a_is_shared(method):
    """What FFA-LoRA is for: with A frozen, mean(B)·A = mean(B·A); without, it is not."""
    rng = np.random.default_rng(0)
    names = ("layer.lora_A.weight", "layer.lora_B.weight")
    shared = rng.integers(-4, 5, (2, 4)).astype(np.float32)
    sites, weights = [], [1, 3]
    for _ in weights:
        own = shared if method == "ffa-lora" else rng.integers(-4, 5, (2, 4))
        sites.append((np.float32(own), np.float32(rng.integers(-4, 5, (4, 2)))))
    study = study_among("A", aggregation={"method": method})
    trained = aggregation.trained_names(study, names)
    updates = [dict(zip(names, pair, strict=True)) for pair in sites]
    packed = [Weights.from_tensors({n: update[n] for n in trained}) for update in updates]
    mean = aggregate(
        method,
        [(w.flat, n) for w, n in zip(packed, weights, strict=True)],
        packed[0].manifest,
    )
    tensors = Weights(packed[0].manifest, mean).tensors()
    product = tensors[names[1]] @ tensors.get(names[0], shared)
    products = np.average([b @ a for a, b in sites], axis=0, weights=weights)
    # Small integers and weights that sum to a power of two: float arithmetic is exact here.
    assert np.array_equal(product, products) == (method == "ffa-lora")
