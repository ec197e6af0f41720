"""What one run of an attack proves about ε: a lower bound, with a confidence.

Of Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run" (NeurIPS 2023,
arXiv 2305.08846). Each of m canaries was put in or left out by a fair coin of its own. The
attacker sees what is released, guesses for r of them and is right v times. Against an
(ε, δ)-DP mechanism no attack is right often, so that being right often refutes the claim.
"""

import numpy as np
from scipy.stats import binom

# Past this every accuracy below 1 is refuted, and 1 - accuracy is still a number.
_LARGEST_EPSILON = 30.0
_TOLERANCE = 1e-6


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely so many correct guesses are at most, if the mechanism is (ε, δ)-DP.

    Corollary 5.4 (computed as in appendix D) of the paper: with
    W ~ Binomial(r, e^ε / (e^ε + 1)),

        P[V ≥ v] ≤ P[W ≥ v] + 2 m δ · max over i = 1 … v of P[v - i ≤ W < v] / i.

    Args:
        canaries: m, each put in independently with probability 1/2.
        guesses: r, for how many of them a guess was made.
        correct: v, how many guesses were right.
        epsilon: ε of the claim, at least 0.
        delta: δ of the claim.

    Returns:
        an upper bound on the probability, at most 1.

    Raises:
        ValueError: not 0 ≤ v ≤ r ≤ m, or not a claim.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"not {correct} correct of {guesses} guesses on {canaries} canaries")
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(f"not a claim: epsilon {epsilon}, delta {delta}")
    accuracy = 1 / (1 + np.exp(-epsilon))
    bound = float(binom.sf(correct - 1, guesses, accuracy))
    if delta > 0 and correct > 0:
        short = np.arange(1, correct + 1)
        just_below = np.cumsum(binom.pmf(correct - short, guesses, accuracy))
        bound += 2 * canaries * delta * float(np.max(just_below / short))
    return min(bound, 1.0)


def epsilon_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """The largest ε that the guesses refute at δ, by bisection.

    The mechanism's ε at δ is above it, except with probability 1 - `confidence` over the
    canaries' coins and the mechanism's.

    Args:
        canaries: m, each put in independently with probability 1/2.
        guesses: r, for how many of them a guess was made: chosen before looking.
        correct: v, how many guesses were right.
        delta: δ of the claim.
        confidence: between 0 and 1.

    Returns:
        ε to 1e-6, rounded down; 0 if nothing is refuted.

    Raises:
        ValueError: not 0 ≤ v ≤ r ≤ m, or the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"not a confidence: {confidence}")

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) <= 1 - confidence

    low, high = 0.0, _LARGEST_EPSILON
    if not refuted(low):
        return 0.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
