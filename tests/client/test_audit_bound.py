"""What guesses prove: the paper's numbers, exact enumeration, and what must hold in general."""

import math
from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fedpact.client.audit_bound import epsilon_bound, p_value


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [
        # Steinke, Nasr and Jagielski (arXiv 2305.08846), appendix D and section 7.
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.675),
        # The same function's values where an audit of ours lives.
        (1000, 100, 80, 1e-5, 0.955),
        (1000, 100, 90, 1e-5, 1.626),
        (1000, 100, 100, 1e-5, 3.465),
        (5000, 500, 500, 1e-5, 4.978),
    ],
)
def test_the_paper_s_numbers(canaries, guesses, correct, delta, published):
    found = epsilon_bound(canaries, guesses, correct, delta, 0.95)
    assert found == pytest.approx(published, abs=1e-3)


def by_hand(m, r, v, epsilon, delta):
    """Corollary 5.4 of the paper, term by term."""
    q = math.exp(epsilon) / (math.exp(epsilon) + 1)
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    alpha = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, sum(mass[v:]) + 2 * m * delta * alpha)


counts = st.integers(1, 60).flatmap(
    lambda r: st.tuples(st.integers(r, 400), st.just(r), st.integers(0, r))
)
epsilons = st.floats(0, 6)
deltas = st.one_of(st.just(0.0), st.floats(1e-9, 1e-2))


@given(counts, epsilons, deltas)
def test_the_p_value_is_the_equation(given_counts, epsilon, delta):
    found = p_value(*given_counts, epsilon, delta)
    assert found == pytest.approx(by_hand(*given_counts, epsilon, delta), rel=1e-9, abs=1e-12)


@given(counts, deltas, st.floats(0.5, 0.999))
def test_more_right_guesses_prove_more(given_counts, delta, confidence):
    m, r, v = given_counts
    assume(v < r)
    assert epsilon_bound(m, r, v, delta, confidence) <= epsilon_bound(
        m, r, v + 1, delta, confidence
    )


@given(counts, deltas, deltas, st.floats(0.5, 0.9), st.floats(0.91, 0.999))
def test_delta_and_confidence_have_their_price(given_counts, one, other, unsure, sure):
    bound = epsilon_bound(*given_counts, max(one, other), sure)
    assert bound <= epsilon_bound(*given_counts, min(one, other), sure) + 1e-5
    assert bound <= epsilon_bound(*given_counts, max(one, other), unsure) + 1e-5


@given(counts, deltas, st.floats(0.5, 0.999), st.floats(0, 1))
def test_all_below_the_bound_is_refuted_and_what_is_above_is_not(
    given_counts, delta, confidence, share
):
    bound = epsilon_bound(*given_counts, delta, confidence)
    if bound:
        assert p_value(*given_counts, share * bound, delta) <= 1 - confidence
    assert p_value(*given_counts, bound + 1e-5, delta) > 1 - confidence


@settings(max_examples=50)
@given(st.integers(1, 300), epsilons, st.sampled_from([0.0, 1e-3, 0.05]))
def test_no_mechanism_that_keeps_its_promise_is_refuted_more_often_than_allowed(
    guesses, epsilon, delta
):
    """Randomised response, which with probability δ tells the truth: ε is spent to the last."""
    accuracy = delta + (1 - delta) / (1 + math.exp(-epsilon))
    right = np.arange(guesses + 1)
    chance = binom.pmf(right, guesses, accuracy)

    def bound(correct):
        return epsilon_bound(guesses, guesses, correct, delta, 0.9)

    # It grows with what is right, so that the first count that refutes can be bisected.
    fewest = bisect_right(right, epsilon, key=bound)
    assert chance[fewest:].sum() <= 0.1


def test_randomised_response_simulated_is_rarely_refuted_and_nearly_found():
    rng, epsilon = np.random.default_rng(0), 1.0
    truth = rng.random((400, 500)) < 0.5
    lies = rng.random(truth.shape) > 1 / (1 + math.exp(-epsilon))
    correct = ((truth ^ lies) == truth).sum(axis=1)
    bounds = np.array([epsilon_bound(500, 500, int(v), 0.0, 0.95) for v in correct])
    assert (bounds > epsilon).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert np.median(bounds) > 0.75


@pytest.mark.parametrize("wrong", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="correct of"):
        p_value(*wrong, 1.0, 0.0)
    with pytest.raises(ValueError, match="confidence"):
        epsilon_bound(10, 5, 5, 0.0, 1.0)
    with pytest.raises(ValueError, match="claim"):
        p_value(10, 5, 5, -1.0, 0.0)
