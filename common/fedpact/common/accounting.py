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
from functools import lru_cache
from typing import Any, NamedTuple

from fedpact.common.errors import BudgetError
from fedpact.common.mechanism import GaussianRelease, Mechanism, SubsampledGaussian

_COARSEST_INTERVAL = 1e-3
_MOST_HALVINGS = 4
_RELATIVE_TOLERANCE = 1e-3
# Mass that a composition may move from the far tail to infinity: it adds to δ.
_TAIL = 1e-15


class _Part(NamedTuple):
    """Equal steps, as one; a sampling rate of 1 is the plain Gaussian mechanism."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """ε of all the mechanisms together.

    Args:
        mechanisms: everything that ran, in any order; the same steps may be split anyhow.
        delta: δ, between 0 and 1.

    Returns:
        an upper bound on ε; 0 if nothing ran.
    """
    return _epsilon(_merge(mechanisms), delta)


def _merge(mechanisms: Iterable[Mechanism]) -> tuple[_Part, ...]:
    """Equal mechanisms as one, and everything without sampling as one.

    Gaussian mechanisms of noise σ₁, σ₂, … compose exactly to one of noise σ with
    1/σ² = 1/σ₁² + 1/σ₂² + … (Dong, Roth and Su 2022, corollary 3.3).
    """
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        match mechanism:
            case SubsampledGaussian(sigma, rate, number):
                steps[sigma, rate] += number
            case GaussianRelease(sigma, number):
                steps[sigma, 1.0] += number
    sampled = sorted(_Part(s, q, n) for (s, q), n in steps.items() if n > 0 and q < 1)
    precision = math.fsum(n / s**2 for (s, q), n in sorted(steps.items()) if q == 1)
    plain = [_Part(1 / math.sqrt(precision), 1.0, 1)] if precision > 0 else []
    return (*sampled, *plain)


@lru_cache(maxsize=4096)
def _epsilon(parts: tuple[_Part, ...], delta: float) -> float:
    if not parts:
        return 0.0
    return float(_composed(parts, _interval(parts)).get_epsilon_for_delta(delta))


def _interval(parts: tuple[_Part, ...]) -> float:
    """A twentieth of sampling rate over noise, as a halving of the coarsest.

    It is one for all: only distributions of the same interval compose.
    """
    finest = min(part.sample_rate / part.noise_multiplier for part in parts) / 20
    halvings = math.ceil(math.log2(_COARSEST_INTERVAL / finest))
    return float(_COARSEST_INTERVAL / 2 ** min(max(halvings, 0), _MOST_HALVINGS))


@lru_cache(maxsize=256)
def _composed(parts: tuple[_Part, ...], interval: float) -> Any:
    """The distribution of all parts, by halves: what did not change is not composed again.

    So one more step of one study among n composes about log₂ n times.
    """
    if len(parts) == 1:
        part = parts[0]
        step = _one_step(part.noise_multiplier, part.sample_rate, interval)
        return step.self_compose(part.steps)
    middle = len(parts) // 2
    halves = (_composed(half, interval) for half in (parts[:middle], parts[middle:]))
    left, right = halves
    return left.compose(right, tail_mass_truncation=_TAIL)


@lru_cache(maxsize=128)
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
    target_epsilon: float,
    target_delta: float,
    sample_rate: float,
    steps: int,
    beside: GaussianRelease | None = None,
) -> float:
    """The smallest noise multiplier (to 0.1 %) with which `steps` steps keep the promise.

    Args:
        target_epsilon: what they may cost together with `beside`.
        target_delta: at this δ.
        sample_rate: q of each step.
        steps: how many.
        beside: what else the promise covers.

    Raises:
        BudgetError: no noise up to 1,000 times the clipping norm would do.
    """
    others = [] if beside is None else [beside]

    def cost(sigma: float) -> float:
        steps_taken = SubsampledGaussian(sigma, sample_rate, steps)
        return epsilon([steps_taken, *others], target_delta)

    low, high = 0.0, 1.0
    while cost(high) > target_epsilon:
        low, high = high, 2 * high
        if high > 1000:  # noqa: PLR2004 - beyond this nothing is learned anyway
            raise BudgetError(
                f"No noise lets {steps} steps at sampling rate {sample_rate:.3g} cost less "
                f"than ε = {target_epsilon} at δ = {target_delta}, for adding or removing one "
                "unit (record or person).",
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


def release_noise(target_epsilon: float, target_delta: float, count: int) -> float:
    """The smallest noise multiplier (to 0.1 %) with which `count` plain releases keep it.

    Raises:
        BudgetError: not even one release could be made so.
    """
    return math.sqrt(count) * noise_multiplier(target_epsilon, target_delta, 1.0, 1)
