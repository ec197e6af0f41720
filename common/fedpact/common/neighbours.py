"""What the same mechanism costs under other neighbouring relations than the ledger's.

The ledger's ε is for adding or removing one record. Two questions go beyond that: what if one
record is *replaced* by another, and what does a person risk who has several records in the
data set? Both are answered by privacy loss distributions, in their pessimistic discretisation.
"""

import math
from functools import lru_cache
from math import comb
from typing import Any

from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian

# Coarser than the ledger's: these are shown, not enforced, and still upper bounds.
_INTERVAL = 5e-3


def replace_one_epsilon(
    mechanism: SubsampledGaussian, delta: float, beside: GaussianRelease | None = None
) -> float:
    """ε at δ of a mechanism and what is released beside it, for replacing one record."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    one = privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=mechanism.noise_multiplier,
        sampling_prob=mechanism.sample_rate,
        value_discretization_interval=_INTERVAL,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
    )
    # One record is taken away and one comes: sums move by twice as much.
    return _together(one.self_compose(mechanism.steps), beside, 2, delta)


def person_epsilon(
    mechanism: SubsampledGaussian,
    records: int,
    delta: float,
    beside: GaussianRelease | None = None,
) -> float:
    """ε at δ for adding or removing a person who has this many records.

    Each of the records is sampled on its own and moves the clipped sum by at most the clipping
    norm, so a step shifts it by a Binomial(records, q) number of norms: a mixture of Gaussians
    (`MixtureOfGaussiansDpEvent` of `dp_accounting`).
    """
    one = _person_step(mechanism.noise_multiplier, mechanism.sample_rate, records)
    return _together(one.self_compose(mechanism.steps), beside, records, delta)


def _together(steps: Any, beside: GaussianRelease | None, moved: int, delta: float) -> float:
    """ε of the steps and a release whose sums move by `moved` times what its noise is for."""
    from dp_accounting.pld import privacy_loss_distribution

    if beside is not None:
        spread = beside.noise_multiplier / (moved * math.sqrt(beside.count))
        steps = steps.compose(
            privacy_loss_distribution.from_gaussian_mechanism(
                standard_deviation=spread, value_discretization_interval=_INTERVAL
            )
        )
    return float(steps.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _person_step(noise_multiplier: float, sample_rate: float, records: int) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    shifts = range(records + 1)
    q = sample_rate
    return privacy_loss_distribution.from_mixture_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sensitivities=list(shifts),
        sampling_probs=[comb(records, n) * q**n * (1 - q) ** (records - n) for n in shifts],
        value_discretization_interval=_INTERVAL,
    )
