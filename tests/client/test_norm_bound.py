"""How far a round can move the adapter: the worst that can be is within the bound, and near it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpact.client.norm_bound import adam_ratio, largest_change
from fedpact.client.trainer import LocalTraining
from fedpact.common.adapter import Weights
from fedpact.common.mechanism import SubsampledGaussian

SIZE = 6


def how(optimizer: str, steps: int, rate: float, decay: float, noise=1e-9) -> LocalTraining:
    """A round of DP-SGD on 100 declared records, of which 20 are expected in a batch."""
    mechanism = SubsampledGaussian(noise, 0.2, steps)
    return LocalTraining(steps, 20, rate, optimizer, decay, 3.0, mechanism=mechanism)


def moved(how: LocalTraining, start: np.ndarray, gradients: np.ndarray) -> float:
    """How far PyTorch's own optimiser goes with these gradients, shape [steps, size]."""
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    kind = torch.optim.SGD if how.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind([parameter], lr=how.learning_rate, weight_decay=how.weight_decay)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return float(np.linalg.norm(parameter.detach().numpy() - start))


def received(start: np.ndarray) -> Weights:
    return Weights.from_tensors({"head.bias": start})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 12),
    rate=st.floats(1e-5, 0.5),
    decay=st.sampled_from([0.0, 0.01, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_adamw_goes_no_further_whatever_the_gradients_are(seed, steps, rate, decay, scale):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=SIZE).astype(np.float32)
    gradients = scale * rng.normal(size=(steps, SIZE)) ** rng.choice([1, 3, 7])
    here = how("adamw", steps, rate, decay)
    assert moved(here, start, gradients) <= largest_change(here, received(start))


@pytest.mark.parametrize("step", [1, 2, 5, 40])
def test_one_step_of_adam_can_be_as_large_as_its_bound(step):
    """Cauchy and Schwarz is met where each gradient is as its two weights are to each other."""
    worst = np.array([(0.9 / 0.999) ** (step - i) for i in range(1, step + 1)])
    first = np.array([0.1 * 0.9 ** (step - i) for i in range(1, step + 1)]) / (1 - 0.9**step)
    second = np.array([0.001 * 0.999 ** (step - i) for i in range(1, step + 1)])
    ratio = first @ worst / math.sqrt(second @ worst**2 / (1 - 0.999**step))
    assert ratio == pytest.approx(adam_ratio(step), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 12),
    rate=st.floats(1e-4, 0.5),
    decay=st.sampled_from([0.0, 0.5, 5.0]),
)
def test_sgd_goes_no_further_and_almost_as_far_when_all_records_pull_one_way(
    seed, steps, rate, decay
):
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=SIZE)
    direction /= np.linalg.norm(direction)
    # Every record of the 100 was drawn, and each gradient is clipped to 3: 15 after the division.
    gradients = np.tile(15.0 * direction, (steps, 1))
    start = (2.0 * direction).astype(np.float32)  # decay pulls the same way
    here = how("sgd", steps, rate, decay)
    bound = largest_change(here, received(start))
    assert moved(here, start, gradients) <= bound
    if not decay:
        assert moved(here, start, gradients) >= 0.99 * bound


def test_noise_counts_with_its_own_norm():
    start = received(np.zeros(SIZE))
    quiet, loud = (largest_change(how("sgd", 1, 1.0, 0.0, s), start) for s in (1e-9, 100.0))
    noise = (
        100.0
        * 3.0
        / 20
        * np.linalg.norm(np.random.default_rng(0).normal(size=(999, SIZE)), axis=1)
    )
    assert quiet == pytest.approx(15.0, rel=2e-3)
    assert noise.max() < loud - quiet < 10 * noise.max()


def test_what_nothing_bounds_has_no_bound():
    plain = LocalTraining(1, 20, 0.1, "sgd")
    assert largest_change(plain, received(np.ones(SIZE))) == math.inf
    adam = LocalTraining(1, 20, 0.1, "adamw")
    assert largest_change(adam, received(np.ones(SIZE))) < 1
