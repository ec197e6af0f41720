"""Randomness: unpredictable, and of the distributions that DP-SGD's promise is computed for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedpact.common.randomness import SecureRandom

# A right generator fails each of these once in a million runs.
RARE = 1e-6


def test_normal_values_are_normal():
    drawn = SecureRandom().standard_normal(200_000)
    assert stats.kstest(drawn, "norm").pvalue > RARE


def test_normal_values_have_the_moments_of_the_normal_distribution():
    drawn, n = SecureRandom().standard_normal(1_000_000), 1_000_000
    # Mean, variance, skewness and kurtosis, each within five of its standard errors.
    assert abs(drawn.mean()) < 5 / n**0.5
    assert abs(drawn.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(stats.skew(drawn)) < 5 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(drawn)) < 5 * (24 / n) ** 0.5


def test_the_tail_is_there():
    drawn = np.abs(SecureRandom().standard_normal(1_000_000))
    expected = 2 * stats.norm.sf(4) * len(drawn)
    assert abs((drawn > 4).sum() - expected) < 6 * expected**0.5


def test_values_do_not_depend_on_those_before():
    drawn = SecureRandom().standard_normal(400_000)
    for apart in (1, 2, 100_000):
        pairs = drawn[:-apart], drawn[apart:]
        assert abs(np.corrcoef(*pairs)[0, 1]) < 6 / len(pairs[0]) ** 0.5


def test_uniform_values_are_uniform_and_below_one():
    drawn = SecureRandom().random(200_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > RARE


def test_no_two_generators_draw_the_same():
    first, second = SecureRandom(), SecureRandom()
    assert not np.intersect1d(first.random(1000), second.random(1000)).size


def test_global_seeds_do_not_reach_it():
    def drawn() -> np.ndarray:
        np.random.seed(0)  # noqa: NPY002 - the global seed is what must not matter
        return SecureRandom().standard_normal(8)

    assert not np.intersect1d(drawn(), drawn()).size


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (1, 1, 7)])
def test_values_come_in_the_shape_asked_for(shape):
    drawn = SecureRandom().standard_normal(shape)
    assert (drawn.shape, drawn.dtype) == (shape, np.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 200))
def test_a_permutation_has_every_number_once(count):
    assert sorted(SecureRandom().permutation(count)) == list(range(count))


def test_every_place_of_a_permutation_is_as_likely():
    random, draws = SecureRandom(), 6000
    seen = np.bincount([int(random.permutation(6)[0]) for _ in range(draws)], minlength=6)
    assert stats.chisquare(seen).pvalue > RARE
