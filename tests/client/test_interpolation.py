"""How far an adapter lies between the shared one and a site's own: what held-out records say."""

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedpact.client.interpolation import SHARES, interpolate
from fedpact.common.adapter import Weights
from fedpact.common.records import EncodedRecords

SHARED, ZERO = (Weights.from_tensors({"b": np.full(3, v, np.float32)}) for v in (1.0, 0.0))


def some_records(count: int) -> EncodedRecords:
    return EncodedRecords.from_lists([[n, n + 1] for n in range(count)], [0] * count)


def ids(records: EncodedRecords) -> set[int]:
    return {int(records.main.of(row)[0]) for row in range(len(records))}


class Site:
    """Whose training adds a thousandth for each record that it saw."""

    def __init__(self, likes: Callable[[float], float]) -> None:
        self.likes = likes
        self.trained: list[set[int]] = []
        self.scored: list[set[int]] = []

    def train(self, start: Weights, records: EncodedRecords) -> Weights:
        self.trained.append(ids(records))
        return Weights(start.manifest, start.flat + np.float32(len(records) / 1000))

    def score(self, weights: Weights, records: EncodedRecords) -> float:
        self.scored.append(ids(records))
        return self.likes(float(weights.flat[0]))


@given(best=st.sampled_from(SHARES), count=st.integers(50, 200))
def test_what_does_best_on_held_out_records_is_made_anew_of_all_records(best, count):
    every = some_records(count)
    site = Site(lambda value: -abs(value - best))
    weights, share = interpolate(SHARED, ZERO, every, site.train, site.score)
    assert share == best
    np.testing.assert_allclose(weights.flat, best + count / 1000, atol=1e-6)

    # It was chosen by records that those which were tried had not seen: about a fifth.
    (held,) = {frozenset(some) for some in site.scored}
    assert site.trained == [ids(every) - held] * 2 + [ids(every)] * 2
    assert 0 < len(held) < count / 2


def test_of_adapters_that_do_equally_well_the_mean_is_taken():
    site = Site(lambda value: 1.0)
    _, share = interpolate(SHARED, ZERO, some_records(100), site.train, site.score)
    assert share == 0.5


def test_a_single_record_cannot_choose_and_the_mean_is_taken():
    for number in range(20):  # some of which would be held out
        one = some_records(20).select(np.array([number]))
        site = Site(lambda value: value)
        _, share = interpolate(SHARED, ZERO, one, site.train, site.score)
        assert (share, site.trained) == (0.5, [{number}] * 2)


def test_equal_records_are_held_out_together():
    """Or else what was seen in training would choose."""
    ten = some_records(10)
    many = ten.select(np.tile(np.arange(10), 20))
    site = Site(lambda value: value)
    interpolate(SHARED, ZERO, many, site.train, site.score)
    assert site.scored
    assert not site.scored[0] & site.trained[0]
