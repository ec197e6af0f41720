"""What mechanisms cost: ε at a given δ, composed over everything that ran.

Privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022) by `dp_accounting`,
in their pessimistic discretisation: ε is an upper bound. Neighbours: add or remove one
record.

What discretisation adds to ε grows with the number of steps and the square of the interval.
The steps that a budget buys grow with the square of noise over sampling rate, so the interval
follows the inverse: where steps are cheap and many it is fine, where they are dear it is
coarse, which is ten times as fast there. `benchmarks/epsilon.py` shows what remains.
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import Any

from fedpact.common.errors import BudgetError
from fedpact.common.mechanism import SubsampledGaussian

_COARSEST_INTERVAL = 1e-3
_MOST_HALVINGS = 4
_RELATIVE_TOLERANCE = 1e-3


def epsilon(mechanisms: Iterable[SubsampledGaussian], delta: float) -> float:
    """ε of all the mechanisms together.

    Args:
        mechanisms: everything that ran, in any order; the same steps may be split anyhow.
        delta: δ, between 0 and 1.

    Returns:
        an upper bound on ε; 0 if nothing ran.
    """
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        steps[mechanism.noise_multiplier, mechanism.sample_rate] += mechanism.steps
    merged = tuple(sorted(SubsampledGaussian(s, q, n) for (s, q), n in steps.items() if n > 0))
    return _epsilon(merged, delta)


@lru_cache(maxsize=4096)
def _epsilon(merged: tuple[SubsampledGaussian, ...], delta: float) -> float:
    if not merged:
        return 0.0
    interval = _interval(merged)
    first, *others = (
        _one_step(m.noise_multiplier, m.sample_rate, interval).self_compose(m.steps)
        for m in merged
    )
    composed = reduce(lambda total, other: total.compose(other), others, first)
    return float(composed.get_epsilon_for_delta(delta))


def _interval(merged: tuple[SubsampledGaussian, ...]) -> float:
    """A twentieth of sampling rate over noise, as a halving of the coarsest.

    It is one for all: only distributions of the same interval compose.
    """
    finest = min(m.sample_rate / m.noise_multiplier for m in merged) / 20
    halvings = math.ceil(math.log2(_COARSEST_INTERVAL / finest))
    return float(_COARSEST_INTERVAL / 2 ** min(max(halvings, 0), _MOST_HALVINGS))


@lru_cache(maxsize=64)
def _one_step(noise_multiplier: float, sample_rate: float, interval: float) -> Any:
    """The privacy loss distribution of one step: what costs the most, and never changes."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=interval,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


@lru_cache(maxsize=256)
def noise_multiplier(
    target_epsilon: float, target_delta: float, sample_rate: float, steps: int
) -> float:
    """The smallest noise multiplier (to 0.1 %) with which `steps` steps keep the promise.

    Raises:
        BudgetError: no noise up to 1,000 times the clipping norm would do.
    """

    def cost(sigma: float) -> float:
        return epsilon([SubsampledGaussian(sigma, sample_rate, steps)], target_delta)

    low, high = 0.0, 1.0
    while cost(high) > target_epsilon:
        low, high = high, 2 * high
        if high > 1000:  # noqa: PLR2004 - beyond this nothing is learned anyway
            raise BudgetError(
                f"No noise lets {steps} steps at sampling rate {sample_rate:.3g} cost less "
                f"than ε = {target_epsilon} at δ = {target_delta}.",
                advice="Take fewer rounds, a smaller batch or a larger budget.",
            )
    while high - low > _RELATIVE_TOLERANCE * high:
        middle = (low + high) / 2
        # Below this the distribution's support outgrows memory, and ε any budget.
        if middle < 0.2 or cost(middle) > target_epsilon:  # noqa: PLR2004
            low = middle
        else:
            high = middle
    return high
