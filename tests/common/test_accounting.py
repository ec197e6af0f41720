"""The accountant: an upper bound, the same as its library's, and as Opacus has it."""

import math

import dp_accounting
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from fedpact.common import accounting
from fedpact.common.errors import BudgetError
from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian

DELTA = 1e-5
GRID = [
    (SubsampledGaussian(0.7, 0.01, 200),),
    (SubsampledGaussian(1.0, 0.05, 100),),
    (SubsampledGaussian(2.0, 0.2, 50),),
    (SubsampledGaussian(5.0, 0.02, 10_000),),
    (SubsampledGaussian(40.0, 0.1, 1000),),
    (SubsampledGaussian(3.0, 1.0, 10),),
    (SubsampledGaussian(1.0, 0.02, 100), SubsampledGaussian(1.5, 0.1, 30)),
    (SubsampledGaussian(1.0, 0.02, 100), GaussianRelease(40.0, 100)),
    (GaussianRelease(3.0, 4),),
]


def by_dp_accounting(mechanisms, delta: float, **kwargs: float) -> float:
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, **kwargs
    )
    for m in mechanisms:
        gaussian = dp_accounting.GaussianDpEvent(m.noise_multiplier)
        match m:
            case GaussianRelease(_, count) | SubsampledGaussian(_, 1.0, count):
                accountant.compose(gaussian, count)
            case SubsampledGaussian(_, rate, steps):
                accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("mechanisms", GRID)
def test_it_is_what_the_library_gives_at_its_default(mechanisms):
    ours = accounting.epsilon(mechanisms, DELTA)
    assert ours == pytest.approx(by_dp_accounting(mechanisms, DELTA), rel=2e-3)
    interval = accounting._interval(accounting._merge(mechanisms))
    same = by_dp_accounting(mechanisms, DELTA, value_discretization_interval=interval)
    assert ours == pytest.approx(same, rel=1e-9)


@pytest.mark.parametrize("mechanisms", GRID)
def test_it_agrees_with_opacus(mechanisms):
    accountant = PRVAccountant()
    for m in mechanisms:
        match m:
            case SubsampledGaussian(sigma, rate, steps):
                accountant.history.append((sigma, rate, steps))
            case GaussianRelease(sigma, count):
                accountant.history.append((sigma, 1.0, count))
    # Opacus adds its tolerance, 0.01 by default, to what it gives: much of a small ε.
    opacus = accountant.get_epsilon(DELTA, eps_error=1e-3)
    assert accounting.epsilon(mechanisms, DELTA) == pytest.approx(opacus, rel=0.01)


def test_nothing_costs_nothing():
    assert accounting.epsilon([], DELTA) == 0.0
    assert accounting.epsilon([SubsampledGaussian(1.0, 0.1, 0)], DELTA) == 0.0


STEPS = st.builds(
    SubsampledGaussian,
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([0.05, 0.1]),
    st.integers(0, 20),
)


@settings(max_examples=15, deadline=None)
@given(mechanisms=st.lists(STEPS, min_size=1, max_size=5), data=st.data())
def test_order_and_splitting_do_not_matter_and_more_costs_more(mechanisms, data):
    whole = accounting.epsilon(mechanisms, DELTA)
    assert accounting.epsilon(data.draw(st.permutations(mechanisms)), DELTA) == whole
    first, *rest = mechanisms
    cut = data.draw(st.integers(0, first.steps))
    halves = [
        SubsampledGaussian(first.noise_multiplier, first.sample_rate, n)
        for n in (cut, first.steps - cut)
    ]
    assert accounting.epsilon([*rest, *halves], DELTA) == whole
    assert accounting.epsilon(rest, DELTA) <= whole * (1 + 1e-6)
    assert accounting.epsilon(mechanisms, 1e-4) <= whole


@pytest.mark.parametrize(
    ("target", "sample_rate", "steps"),
    [(8.0, 0.05, 100), (1.0, 0.02, 200), (0.5, 0.2, 40), (3.0, 1.0, 20)],
)
def test_noise_keeps_the_promise_and_a_hundredth_less_does_not(target, sample_rate, steps):
    sigma = accounting.noise_multiplier(target, DELTA, sample_rate, steps)
    kept = accounting.epsilon([SubsampledGaussian(sigma, sample_rate, steps)], DELTA)
    assert 0.97 * target < kept <= target
    broken = [SubsampledGaussian(0.99 * sigma, sample_rate, steps)]
    assert accounting.epsilon(broken, DELTA) > target


def test_plain_gaussians_of_any_noise_compose_to_one():
    """1/σ² adds up, exactly; and a release is a step in which everyone is."""
    releases = [GaussianRelease(3.0, 2), GaussianRelease(6.0, 4)]
    one = accounting.epsilon([GaussianRelease(math.sqrt(3.0), 1)], DELTA)
    assert accounting.epsilon(releases, DELTA) == pytest.approx(one, rel=1e-9)
    assert accounting.epsilon([SubsampledGaussian(math.sqrt(3.0), 1.0, 1)], DELTA) == one


def test_noise_leaves_room_for_what_stands_beside():
    noise = accounting.release_noise(0.2, DELTA, 20)
    beside = GaussianRelease(noise, 20)
    assert 0.19 < accounting.epsilon([beside], DELTA) <= 0.2
    alone = accounting.noise_multiplier(4.0, DELTA, 0.05, 20)
    sigma = accounting.noise_multiplier(4.0, DELTA, 0.05, 20, beside)
    assert sigma > alone
    steps = SubsampledGaussian(sigma, 0.05, 20)
    assert 3.9 < accounting.epsilon([steps, beside], DELTA) <= 4.0


def test_a_promise_that_no_noise_keeps_is_refused():
    with pytest.raises(BudgetError, match="No noise lets 1000 steps"):
        accounting.noise_multiplier(1e-4, 1e-9, 1.0, 1000)


def test_noise_has_a_floor_however_large_the_budget():
    assert accounting.noise_multiplier(1e6, DELTA, 0.5, 1) >= 0.2


@pytest.mark.parametrize(
    ("sigma", "q", "steps"),
    [
        (0.0, 0.1, 1),
        (-1.0, 0.1, 1),
        (float("nan"), 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, float("nan"), 1),
        (1.0, 0.1, -1),
    ],
)
def test_what_is_not_a_mechanism(sigma, q, steps):
    with pytest.raises(ValueError, match="not a mechanism"):
        SubsampledGaussian(sigma, q, steps)


@pytest.mark.parametrize(("sigma", "count"), [(0.0, 1), (float("nan"), 1), (1.0, -1)])
def test_what_is_not_a_release(sigma, count):
    with pytest.raises(ValueError, match="not a mechanism"):
        GaussianRelease(sigma, count)
