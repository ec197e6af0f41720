"""Sampling that ε is computed for, and cuts that cost little padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.client.batching import SIZES, micro_batches, poisson_batches, shuffled_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.asarray)


def take(batches, count):
    return list(itertools.islice(batches, count))


def padded(batches, lengths, overhead=0):
    return sum(len(b) * lengths[b].max() + overhead for b in batches)


def test_poisson_sizes_vary_as_independent_draws_do():
    records, rate, draws = 400, 0.1, 3000
    sizes = np.asarray(
        [len(b) for b in take(poisson_batches(records, rate, np.random.default_rng(0)), draws)]
    )
    variance = records * rate * (1 - rate)
    assert abs(sizes.mean() - records * rate) < 4 * np.sqrt(variance / draws)
    # A shuffled loader would have variance 0, sampling with replacement 40 instead of 36.
    assert abs(sizes.var() / variance - 1) < 4 * np.sqrt(2 / draws)


def test_poisson_draws_each_record_as_often_and_on_its_own():
    records, rate, draws = 20, 0.3, 4000
    seen = np.zeros((draws, records))
    for row, batch in zip(
        seen, poisson_batches(records, rate, np.random.default_rng(1)), strict=False
    ):
        row[batch] = 1
    assert np.abs(seen.mean(axis=0) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / draws)
    correlations = np.corrcoef(seen.T) - np.eye(records)
    assert np.abs(correlations).max() < 5 / np.sqrt(draws)


def test_poisson_batches_may_be_empty_or_whole():
    rng = np.random.default_rng(2)
    assert all(len(b) == 0 for b in take(poisson_batches(5, 1e-12, rng), 20))
    assert all(b.tolist() == [0, 1, 2, 3, 4] for b in take(poisson_batches(5, 1.0, rng), 3))


@given(records=st.integers(1, 50), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_shuffled_pass_uses_no_record_twice(records, size, seed):
    per_pass = records // min(size, records)
    batches = take(shuffled_batches(records, size, np.random.default_rng(seed)), 2 * per_pass)
    assert {len(b) for b in batches} == {min(size, records)}
    for start in (0, per_pass):
        used = np.concatenate(batches[start : start + per_pass])
        assert len(set(used.tolist())) == len(used)


@given(lengths=LENGTHS, data=st.data())
def test_micro_batches_hold_the_same_records_within_the_bound(lengths, data):
    indices = np.asarray(
        data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True)), dtype=np.int64
    )
    bound = data.draw(st.integers(1, 300))
    batches = micro_batches(indices, lengths, bound)
    together = [i for b in batches for i in b.tolist()]
    assert sorted(together) == sorted(indices.tolist())
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= bound for b in batches)


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_the_order_of_a_logical_batch_does_not_matter(lengths, seed):
    indices = np.arange(len(lengths))
    shuffled = np.random.default_rng(seed).permutation(indices)
    one, other = (micro_batches(x, lengths, 200) for x in (indices, shuffled))
    assert [b.tolist() for b in one] == [b.tolist() for b in other]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8).map(np.asarray),
    bound=st.integers(30, 120),
    overhead=st.integers(0, 60),
)
def test_no_other_cut_of_the_sorted_records_is_cheaper(lengths, bound, overhead):
    order = np.argsort(-lengths)
    best = np.inf
    for cuts in itertools.product((False, True), repeat=len(order) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(order)]
        parts = [order[a:b] for a, b in itertools.pairwise(edges)]
        fit = all(len(p) * lengths[p].max() <= bound for p in parts)
        if fit and all(len(p) in SIZES for p in parts):
            best = min(best, padded(parts, lengths, overhead))
    found = micro_batches(np.arange(len(lengths)), lengths, bound, overhead)
    assert padded(found, lengths, overhead) == best


def test_padding_is_small_where_lengths_vary_much():
    rng = np.random.default_rng(3)
    lengths = np.clip(rng.lognormal(2.4, 0.7, 20_000).astype(np.int64), 3, 128)
    for batch in take(poisson_batches(len(lengths), 512 / len(lengths), rng), 5):
        cut = micro_batches(batch, lengths, 4096)
        assert padded(cut, lengths) / lengths[batch].sum() < 1.10
        assert len(cut) < 20


@pytest.mark.parametrize("bound", [1, 100])
def test_no_records_are_no_micro_batches(bound):
    assert micro_batches(np.empty(0, dtype=np.int64), np.asarray([3, 4]), bound) == []
