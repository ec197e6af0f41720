"""Sums of products as factors: stacked exactly, cut to a rank as well as can be."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedpact.server.aggregation.factors import compress, merge, product_norm, stack

RANKS = st.lists(st.integers(1, 4), min_size=1, max_size=4)
SIZES = st.integers(1, 9)


@st.composite
def sums(draw):
    """Pairs of unequal ranks, a weight for each, and what they sum to."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks, d_out, d_in = draw(RANKS), draw(SIZES), draw(SIZES)
    pairs = [(rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))) for r in ranks]
    weights = list(rng.uniform(0.1, 2, len(pairs)))
    total = sum(w * b @ a for (b, a), w in zip(pairs, weights, strict=True))
    return pairs, weights, total


@given(case=sums())
def test_stacking_is_exact_for_unequal_ranks(case):
    pairs, weights, total = case
    left, right = stack(pairs, weights)
    assert left.shape[1] == right.shape[0] == sum(a.shape[0] for _, a in pairs)
    np.testing.assert_allclose(left @ right, total, atol=1e-12)


@given(case=sums(), rank=st.integers(1, 12))
def test_no_factors_of_the_rank_come_nearer(case, rank):
    pairs, weights, total = case
    b, a = compress(pairs, rank, weights)
    assert (b.shape, a.shape) == ((total.shape[0], rank), (rank, total.shape[1]))
    singular = np.linalg.svd(total, compute_uv=False)
    nearest = np.sqrt(np.sum(singular[rank:] ** 2))
    np.testing.assert_allclose(np.linalg.norm(b @ a - total), nearest, atol=1e-9)


@given(case=sums(), rank=st.integers(1, 12))
def test_the_rows_of_a_are_orthonormal_as_far_as_there_are_dimensions(case, rank):
    pairs, weights, total = case
    _, a = compress(pairs, rank, weights)
    whole = min(rank, total.shape[1], sum(x.shape[0] for _, x in pairs))
    np.testing.assert_allclose(a[:whole] @ a[:whole].T, np.eye(whole), atol=1e-9)
    np.testing.assert_array_equal(a[whole:], 0)


@given(case=sums())
def test_the_norm_of_a_product_needs_no_product(case):
    pairs, weights, total = case
    np.testing.assert_allclose(
        product_norm(*stack(pairs, weights)), np.linalg.norm(total), rtol=1e-6, atol=1e-6
    )


@given(case=sums())
def test_merging_loses_nothing_and_takes_no_more_factors_than_it_needs(case):
    pairs, weights, total = case
    b, a = merge(pairs, weights)
    np.testing.assert_allclose(b @ a, total, atol=1e-9)
    ranks = sum(x.shape[0] for _, x in pairs)
    assert b.shape[1] == a.shape[0] <= min(*total.shape, ranks)
    again = merge([(b, a), (b, -a)], [1.0, 1.0])
    assert again[0].shape[1] == 1  # nothing is left, and a pair has one component at least
    np.testing.assert_allclose(again[0] @ again[1], 0, atol=1e-9)
