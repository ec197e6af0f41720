"""Private metrics: what one record can change is bounded, and the noise is what was reserved."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.client.private_metrics import SENSITIVITY, release
from fedpact.common.evaluation import Scores
from fedpact.common.mechanism import GaussianRelease
from support.site_factory import INSTITUTION, RECORDS, a_study

STUDY = a_study(evaluation={"site_metrics": "private", "validation_fraction": 0.1})
EXPECTED = RECORDS * 0.1


class Silence(np.random.Generator):
    """Noise that is none."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def standard_normal(self, size=None, *_):
        return np.zeros(size)


def measured(losses, correct, noise: float = 1.0, rng=None):
    scores = Scores(np.asarray(losses, np.float32), np.asarray(correct, np.float32))
    how = GaussianRelease(noise, 1)
    return release(scores, STUDY, INSTITUTION, how, rng or Silence())


RECORD = st.tuples(st.floats(width=32), st.booleans())  # not-a-numbers and infinities too


@given(records=st.lists(RECORD, max_size=20), one=RECORD)
def test_one_record_moves_the_sums_by_no_more_than_the_noise_is_for(records, one):
    without, with_it = (
        measured([loss for loss, _ in some], [right for _, right in some])
        for some in (records, [*records, one])
    )
    moved = math.hypot(
        with_it.accuracy - without.accuracy,
        (with_it.loss - without.loss) / STUDY.loss_clip,
    )
    assert moved * EXPECTED <= SENSITIVITY * (1 + 1e-9)


def test_without_noise_they_are_the_means_where_the_size_is_as_declared():
    losses = np.linspace(0, STUDY.loss_clip, 100)
    found = measured(losses, np.arange(100) < 80)
    assert found.kind == "private"
    assert found.accuracy == pytest.approx(0.8)
    assert found.loss == pytest.approx(losses.mean())
    # A loss beyond the clip counts as the clip.
    assert measured([1e30] * 100, [True] * 100).loss == pytest.approx(STUDY.loss_clip)


def test_the_number_of_records_is_not_in_what_leaves():
    """A head at zero guesses: ln 2 and one half, however many there are."""
    few, many = (measured([math.log(2)] * n, [True, False] * (n // 2)) for n in (10, 400))
    assert few.loss == pytest.approx(many.loss)
    assert few.accuracy == many.accuracy == 0.5
    nothing = measured([], [])
    assert (nothing.accuracy, nothing.loss) == (0.5, pytest.approx(math.log(2)))


def test_the_noise_is_as_large_as_stated_and_not_the_same_for_both():
    rng = np.random.default_rng(0)
    found = [measured([0.3] * 100, [True] * 100, 8.0, rng) for _ in range(4000)]
    loss, accuracy = (
        np.array([getattr(f, name) for f in found]) for name in ("loss", "accuracy")
    )
    assert found[0].accuracy_noise == pytest.approx(8.0 * SENSITIVITY / EXPECTED)
    assert accuracy.std() == pytest.approx(found[0].accuracy_noise, rel=0.05)
    assert loss.std() == pytest.approx(found[0].loss_noise, rel=0.05)
    assert abs(np.corrcoef(loss, accuracy)[0, 1]) < 0.06
