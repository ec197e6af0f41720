"""Which records are in a step, and how they are cut to fit in memory.

A *logical batch* is what one optimiser step sees. Under DP it is drawn by Poisson sampling:
every record is in it or not with probability q, on its own, which is what ε is computed for;
its size varies and can be zero. Where the promise is to persons, persons are drawn like that,
each with some of its records. Without DP it is a slice of a shuffled pass.

A *micro-batch* is what goes through the model at once. The order within a logical batch
changes nothing but the padding, so records are sorted by length before they are cut.
"""

from collections.abc import Iterator

import numpy as np

from fedpact.common.randomness import Randomness
from fedpact.common.records import IntArray

# What one more micro-batch costs besides its tokens (the launching of some 500 small
# kernels), in tokens: 20 ms at 0.35 ms a token, for a 6-layer BERT on two CPU cores.
_OVERHEAD_TOKENS = 64
# How many records go through the model at once: few numbers, since a CPU compiles its matrix
# products anew for each shape, which took a third of a step's time.
SIZES = np.array([2**k * m for k in range(20) for m in (2, 3)] + [1])


def poisson_batches(records: int, sample_rate: float, rng: Randomness) -> Iterator[IntArray]:
    """Draw logical batches without end, each record in each with probability `sample_rate`.

    Yields:
        indices in rising order, shape [n]; n varies and can be 0.
    """
    while True:
        yield np.flatnonzero(rng.random(records) < sample_rate)


def person_batches(
    persons: IntArray, sample_rate: float, most: int, rng: Randomness
) -> Iterator[IntArray]:
    """Draw logical batches without end, each person in each with probability `sample_rate`.

    Of a person with more than `most` records, as many are chosen at random, anew each time.

    Args:
        persons: whose each record is, numbers from 0 without a gap, shape [N].
        sample_rate: q.
        most: records of one person in a batch, at most.
        rng: for persons and for their records.

    Yields:
        indices of records in rising order, shape [n]; n varies and can be 0.
    """
    count = int(persons.max(initial=-1)) + 1
    while True:
        drawn = rng.random(count) < sample_rate
        records = np.flatnonzero(drawn[persons])
        order = records[np.lexsort((rng.random(len(records)), persons[records]))]
        owners = persons[order]
        rank = np.arange(len(order)) - np.searchsorted(owners, owners)
        yield np.sort(order[rank < most])


def shuffled_batches(records: int, batch_size: int, rng: Randomness) -> Iterator[IntArray]:
    """Draw logical batches of one size, pass after shuffled pass. Not private.

    A pass begins when this is called, once a round: a round of fewer steps than a pass has
    sees records drawn anew, without regard to what earlier rounds saw.

    Yields:
        indices, shape [min(batch_size, records)]; what is left over at the end of a pass is
        not used in it.
    """
    size = min(batch_size, records)
    while True:
        order = rng.permutation(records)
        for start in range(0, records - size + 1, size):
            yield order[start : start + size]


def micro_batches(
    indices: IntArray,
    lengths: IntArray,
    max_tokens: int,
    overhead_tokens: int = _OVERHEAD_TOKENS,
    persons: IntArray | None = None,
) -> list[IntArray]:
    """Cut a logical batch into the micro-batches that take the least time.

    Records are sorted by length; the cuts minimise padded tokens plus `overhead_tokens` for
    each micro-batch, exactly, by dynamic programming over the sorted records, among cuts into
    `SIZES`. A person's records are never cut apart: they are clipped together, and the sizes are
    as they come.

    Args:
        indices: the logical batch, shape [n], in any order.
        lengths: tokens of every record of the data set, shape [N].
        max_tokens: the most tokens in a micro-batch, padding included. A record (or person)
            with more than that is alone in its own.
        overhead_tokens: what a micro-batch costs besides its tokens, in tokens.
        persons: whose every record is, shape [N]; None: each is alone.

    Returns:
        the indices of each micro-batch, longest records first.
    """
    order, bounds, longest = _pieces(indices, lengths, persons)
    cost = np.zeros(len(bounds))
    cut = np.zeros(len(bounds), dtype=np.int64)
    first = 0
    for end in range(1, len(bounds)):
        # The longest record, which sets the padded length, is in the first piece.
        while first < end - 1 and (bounds[end] - bounds[first]) * longest[first] > max_tokens:
            first += 1
        starts = np.arange(first, end) if persons is not None else end - SIZES
        starts = starts[starts >= first]
        padded = (bounds[end] - bounds[starts]) * longest[starts]
        costs = cost[starts] + padded + overhead_tokens
        best = int(np.argmin(costs))
        cost[end], cut[end] = costs[best], starts[best]
    batches = []
    end = len(bounds) - 1
    while end:
        start = int(cut[end])
        batches.append(order[bounds[start] : bounds[end]])
        end = start
    return batches[::-1]


def _pieces(
    indices: IntArray, lengths: IntArray, persons: IntArray | None
) -> tuple[IntArray, IntArray, IntArray]:
    """A logical batch as pieces that stay whole, the one with the longest record first.

    Returns:
        indices in their order, shape [n]; where each piece begins, and the end, shape
        [pieces + 1]; each piece's longest record, shape [pieces].
    """
    if persons is None:
        order = indices[np.lexsort((indices, -lengths[indices]))]
        return order, np.arange(len(order) + 1), lengths[order]
    _, owner, counts = np.unique(persons[indices], return_inverse=True, return_counts=True)
    longest = np.zeros(len(counts), dtype=np.int64)
    np.maximum.at(longest, owner, lengths[indices])
    first = np.argsort(-longest, kind="stable")
    order = indices[np.lexsort((indices, np.argsort(first)[owner]))]
    return order, np.concatenate(([0], np.cumsum(counts[first]))), longest[first]
