"""How far a round of training can move the adapter, from public numbers alone. Pure.

What is larger was not trained as the study says: the gate keeps it. The bound holds for every
batch that can be drawn from a data set of the declared size, so whether an update is above it
follows from the update, which is private already, and from nothing else.

Under DP-SGD the noised sum of a step is at most C per record, for as many records as there
are (the expected batch over the sampling rate), plus the noise: σ C times the norm of d normal
values, which is above √d + t with a chance of at most exp(-t²/2). Adam's step is bounded in each
coordinate whatever the gradients were: by Cauchy and Schwarz, the weighted mean of some numbers
over the root of another weighted mean of their squares.
"""

import math

from fedpact.client.trainer import LocalTraining
from fedpact.common.adapter import Weights

# A chance below 10⁻³¹ a step that honest noise is larger.
_TAIL = 12.0
_BETAS = (0.9, 0.999)  # AdamW's in `trainer`: PyTorch's own
# What float32 may add: to the sums of a step, and each time that a value is written back.
_SLACK, _ULP = 1e-3, 2.0**-22


def largest_change(how: LocalTraining, received: Weights) -> float:
    """The L2 norm that what a round changes has at most.

    Args:
        how: what the round does.
        received: the values that it trains, as they came.

    Returns:
        the bound; infinity for plain SGD, whose gradients nothing bounds.
    """
    start, rate, size = received.norm, how.learning_rate, received.manifest.size
    decay = rate * how.weight_decay
    moved = 0.0
    for step in range(1, how.steps + 1):
        # Decay takes what was received towards zero, and what was changed with it.
        moved = abs(1 - decay) * moved + decay * start + rate * _step(how, size, step)
    return (1 + _SLACK) * moved + how.steps * _ULP * (start + moved)


def _step(how: LocalTraining, size: int, step: int) -> float:
    """The largest norm of one step at a learning rate of one."""
    if how.optimizer == "adamw":
        return math.sqrt(size) * adam_ratio(step)
    if how.mechanism is None:
        return math.inf
    noise = how.mechanism.noise_multiplier * (math.sqrt(size) + _TAIL) / how.batch_size
    return how.max_grad_norm * (1 / how.mechanism.sample_rate + noise)


def adam_ratio(step: int) -> float:
    """What Adam's step in one coordinate is at most, at a learning rate of one.

    Args:
        step: how many gradients it has seen, from 1.
    """
    one, two = _BETAS
    shrinks = one * one / two
    weights = (1 - shrinks**step) / (1 - shrinks)
    corrected = (1 - two**step) / (1 - one**step) ** 2
    return math.sqrt((1 - one) ** 2 / (1 - two) * weights * corrected)
