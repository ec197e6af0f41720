"""Faults in DP-SGD that are easily made and that no test of accuracy would show.

Each is planted by replacing one function of the production code; the accountant goes on
saying what it said.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fedpact.client import batching, dpsgd, trainer
from fedpact.common import accounting
from fedpact.common.randomness import Randomness
from fedpact.common.records import IntArray

_standard_normal, _epsilon = dpsgd.standard_normal, accounting.epsilon
_add = dpsgd.PrivateStep.add


def _scaled_noise(factor: float) -> Callable[..., torch.Tensor]:
    def noise(shape: Sequence[int], rng: Any) -> torch.Tensor:
        return factor * _standard_normal(shape, rng)

    return noise


def _sum_unclipped(optimizer: Any) -> None:
    """Clipping switched off."""
    for parameter in optimizer.params:
        total = parameter.grad_sample.sum(0)
        so_far = parameter.summed_grad
        parameter.summed_grad = total if so_far is None else so_far + total


def _clip_the_mean(optimizer: Any) -> None:
    """The mean of a batch is clipped, as whoever calls `clip_grad_norm_` clips it."""
    records = len(optimizer.params[0].grad_sample)
    means = [parameter.grad_sample.sum(0) / max(records, 1) for parameter in optimizer.params]
    norm = float(torch.stack([mean.norm() for mean in means]).norm())
    factor = records * min(1.0, optimizer.max_grad_norm / (norm + 1e-6))
    for parameter, mean in zip(optimizer.params, means, strict=True):
        so_far = parameter.summed_grad
        parameter.summed_grad = factor * mean if so_far is None else so_far + factor * mean


def _clip_each_record(
    step: dpsgd.PrivateStep,
    losses: torch.Tensor,
    persons: torch.Tensor | None = None,
    rows: int = 1,
) -> None:
    """DP-SGD as for records, where the promise is to persons."""
    del persons, rows
    _add(step, losses)


def _sample_records(
    persons: IntArray, sample_rate: float, most: int, rng: Randomness
) -> Iterator[IntArray]:
    """Each record for itself, and so a person with many nearly always."""
    del most
    return batching.poisson_batches(len(persons), sample_rate, rng)


def _told_a_smaller_rate(mechanisms: Any, delta: float) -> float:
    return _epsilon([replace(m, sample_rate=m.sample_rate / 8) for m in mechanisms], delta)


# What each is, and which attribute of what it replaces.
BUGS: dict[str, tuple[Any, str, Any]] = {
    "noise switched off": (dpsgd, "standard_normal", _scaled_noise(0.0)),
    "half the noise": (dpsgd, "standard_normal", _scaled_noise(0.5)),
    "clipping switched off": (dpsgd._NoisyOptimizer, "clip_and_accumulate", _sum_unclipped),  # noqa: SLF001
    "the batch clipped, not the record": (
        dpsgd._NoisyOptimizer,  # noqa: SLF001
        "clip_and_accumulate",
        _clip_the_mean,
    ),
    "accountant told an eighth of the rate": (accounting, "epsilon", _told_a_smaller_rate),
}

# The same, where the promise is to persons.
PERSON_BUGS: dict[str, tuple[Any, str, Any]] = {
    "each record clipped, not the person": (dpsgd.PrivateStep, "add", _clip_each_record),
    "records sampled, not persons": (trainer, "person_batches", _sample_records),
    "a person's records summed, not clipped": (
        dpsgd._NoisyOptimizer,  # noqa: SLF001
        "clip_and_accumulate",
        _sum_unclipped,
    ),
}


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """Run with a bug in the production code; without any for the empty name."""
    if not bug:
        yield
        return
    owner, name, faulty = (BUGS | PERSON_BUGS)[bug]
    sound = owner.__dict__.get(name)
    accounting.noise_multiplier.cache_clear()
    setattr(owner, name, faulty)
    try:
        yield
    finally:
        if sound is None:
            delattr(owner, name)
        else:
            setattr(owner, name, sound)
        accounting.noise_multiplier.cache_clear()
