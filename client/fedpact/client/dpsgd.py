"""DP-SGD (Abadi et al. 2016) by Opacus, for a PEFT model.

Rules, each of which has a test:

1. The model is in training mode and on its device before it is watched: in evaluation mode
   Opacus records nothing, and a parameter that is replaced afterwards is trained by nobody.
   Both are refused.
2. The optimiser holds what requires a gradient, all of it and nothing else.
3. Each record's gradient, over all those parameters together, is clipped to `max_grad_norm`,
   or under automatic clipping (Bu et al. 2023) scaled to just below it: C g / (|g| + γ). What is
   not finite in it counts as zero. A record that goes through the model in some windows is one
   record: the windows' gradients are added first. Where the promise is to persons, it is the mean of
   a person's gradients that is clipped: one person moves the sum by no more than that.
4. Noise is added once for each logical batch, not for each micro-batch.
5. The noised sum is divided by the *expected* batch size, which is public, never by the
   drawn one.
6. An empty logical batch is a step like any other, noise included.

Arithmetic on gradients is float32 whatever the precision of the forward pass.
"""

import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from fedpact.common.errors import TrainingError
from fedpact.common.randomness import Randomness, SecureRandom

Clipping = Literal["flat", "automatic"]
# γ of automatic clipping, as in Bu et al. 2023: gradients far below it fade, as those of records
# that are learned do.
AUTOMATIC = 0.01


class Step(Protocol):
    """One optimiser step over a logical batch that comes in micro-batches."""

    def add(self, losses: Tensor, persons: Tensor | None = None, rows: int = 1) -> None:
        """Take in a micro-batch: the loss of each of its records, and whose it is, shape [n].

        Each record has gone through the model in `rows` rows, next to each other.
        """
        ...

    def apply(self) -> None:
        """End the logical batch and change the parameters."""
        ...


def standard_normal(shape: Sequence[int], rng: Randomness) -> Tensor:
    """Draw noise of unit variance, float64, on the CPU: all of DP-SGD's noise comes from here."""
    return torch.from_numpy(rng.standard_normal(tuple(shape)))


class PlainStep:
    """The step without privacy: the mean of the gradients over the records that came."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._optimizer.zero_grad()  # what a step that was given up may have left
        self._records = 0

    def add(self, losses: Tensor, persons: Tensor | None = None, rows: int = 1) -> None:
        """Take in a micro-batch: the loss of each of its records, shape [n]."""
        del persons, rows  # nothing is clipped
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._records += len(losses)

    def apply(self) -> None:
        """Divide the sum by the number of records, step, and start anew."""
        for parameter in _parameters_of(self._optimizer):
            if parameter.grad is not None:
                parameter.grad /= max(self._records, 1)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._records = 0


class PrivateStep:
    """The step of DP-SGD. Use it as a context: at its end the model is as it was before.

    Args:
        model: a PEFT model in training mode, on its device.
        optimizer: over the model's trainable parameters.
        noise_multiplier: σ, the noise's standard deviation over `max_grad_norm`.
        max_grad_norm: C, the L2 norm to which each record's gradient is clipped.
        clipping: `flat` cuts what is longer than C; `automatic` brings all to nearly C before.
        expected_batch_size: sampling rate times the data set's public size.
        rng: for the noise; cryptographic by default. Give one with a seed only in tests and
            simulations: who knows it can take the noise away.

    Raises:
        TrainingError: the optimiser does not hold the model's trainable parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        clipping: Clipping = "flat",
        rng: Randomness | None = None,
    ) -> None:
        self._model = model
        self._parameters = _parameters_of(optimizer)
        self._check_parameters()
        # Nothing below the first adapter needs a gradient, and Opacus can do without.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        self._watched = [m for m in model.modules() if _is_trainable(m)]
        self._hooks = RecordHooks(model, loss_reduction="sum")
        self._optimizer = _NoisyOptimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
        )
        self._optimizer.clipping = clipping
        self._optimizer.rng = rng or SecureRandom()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, losses: Tensor, persons: Tensor | None = None, rows: int = 1) -> None:
        """Take in a micro-batch: the loss of each of its records, shape [n].

        The forward pass must come after this object was made, and each loss must depend on
        one record alone.

        Args:
            losses: shape [n].
            persons: whose each record is, shape [n]: equal numbers are clipped together, so
                all of a person's records must be here. None: each is clipped alone.
            rows: through how many rows of the model each record went, next to each other.

        Raises:
            TrainingError: the model is not in training mode, its parameters were replaced,
                or a parameter has no gradient for each record.
        """
        if not all(module.training for module in self._watched):
            raise TrainingError(
                "The model is in evaluation mode, in which no record's gradient is recorded.",
                advice="Call `model.train()` before the forward pass.",
            )
        self._check_parameters()
        self._backward(losses)
        for parameter in self._parameters:
            recorded = by_record(parameter, len(losses), rows)
            # An adapter can be made so that one record alone overflows, and clipping leaves
            # what is not a number as it is: the whole update would then tell of that record.
            samples = recorded if persons is None else _mean_by_person(recorded, persons)
            samples.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            parameter.grad_sample = samples  # type: ignore[attr-defined]
        self._step(skip=True)

    def apply(self) -> None:
        """End the logical batch: noise once, divide by the expected size, step.

        Raises:
            TrainingError: the model's parameters were replaced.
        """
        self._check_parameters()
        # Opacus adds noise after a micro-batch that is the last: here it is always an empty
        # one, so that a logical batch without records goes the same way as any other.
        for parameter in self._parameters:
            empty = parameter.new_zeros((0, *parameter.shape))
            parameter.grad_sample = empty  # type: ignore[attr-defined]
        self._step(skip=False)

    def close(self) -> None:
        """Take the hooks off the model and forget what they recorded."""
        self._hooks.cleanup()
        for module in self._watched:
            module.__dict__.pop("activations", None)
            module.__dict__.pop("max_batch_len", None)
        for parameter in self._parameters:
            parameter.__dict__.pop("summed_grad", None)
            parameter.grad = None

    def _backward(self, losses: Tensor) -> None:
        """Have every parameter record each record's gradient."""
        losses.sum().backward()  # type: ignore[no-untyped-call]

    def _step(self, *, skip: bool) -> None:
        self._optimizer.signal_skip_step(do_skip=skip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _check_parameters(self) -> None:
        trainable = {id(p) for p in self._model.parameters() if p.requires_grad}
        if trainable != {id(p) for p in self._parameters}:
            raise TrainingError(
                "The optimiser does not hold what the model trains.",
                advice="Move the model and choose what it trains before making the optimiser.",
            )


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus' optimiser with our clipping, and the noise drawn by `standard_normal`."""

    clipping: Clipping
    rng: Randomness

    def clip_and_accumulate(self) -> None:
        if self.clipping == "automatic":
            norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in self.grad_samples])
            factors = self.max_grad_norm / (norms.norm(dim=0) + AUTOMATIC)
            for sample in self.grad_samples:
                sample.mul_(factors.view(-1, *[1] * (sample.dim() - 1)))
        super().clip_and_accumulate()  # so that the bound holds whatever came before

    def add_noise(self) -> None:
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            # Rounded once, after the sum: float32 noise would have gaps that tell what it hid.
            noised = parameter.summed_grad.cpu().double()
            noised += std * standard_normal(parameter.shape, self.rng)
            parameter.grad = noised.to(parameter)


def _linear_in_float32(
    layer: nn.Linear, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Gradient of each record in a linear layer: weight [n, out, in] and bias [n, out].

    As Opacus has it, which would however sum over tokens in the precision of the forward
    pass: under bf16 autocast, norms would be off by a percent.
    """
    inputs, outputs = activations[0].float(), backprops.float()
    samples: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        samples[layer.weight] = torch.einsum("n...i,n...j->nij", outputs, inputs)
    if layer.bias is not None and layer.bias.requires_grad:
        samples[layer.bias] = torch.einsum("n...k->nk", outputs)
    return samples


class RecordHooks(GradSampleHooks):  # type: ignore[misc]  # opacus has no types
    """Opacus' hooks: each trainable parameter gets `grad_sample`, float32, [n, *shape]."""

    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {
        **GradSampleHooks.GRAD_SAMPLERS,
        nn.Linear: _linear_in_float32,
    }


def by_record(parameter: nn.Parameter, records: int, rows: int) -> Tensor:
    """Each record's gradient as the hooks recorded it, shape [records, *shape].

    Args:
        parameter: one that is trained.
        records: how many went through the model.
        rows: in how many rows each of them did, next to each other: they are added.

    Raises:
        TrainingError: there are not as many rows, or none.
    """
    recorded: Tensor | None = getattr(parameter, "grad_sample", None)
    if recorded is None or recorded.shape != (records * rows, *parameter.shape):
        raise TrainingError(
            "A trained parameter has no gradient for each record.",
            advice="Each needs one loss, from a forward pass after this step began.",
        )
    return (
        recorded if rows == 1 else recorded.reshape(records, rows, *parameter.shape).sum(dim=1)
    )


def _mean_by_person(samples: Tensor, persons: Tensor) -> Tensor:
    """Each person's mean gradient, shape [persons, *shape], from each record's, [n, *shape].

    The mean, not the sum: how strongly a person is clipped does not follow from how many
    records the person has.
    """
    _, owner, counts = torch.unique(persons, return_inverse=True, return_counts=True)
    shares = samples / counts[owner].to(samples).view(-1, *[1] * (samples.dim() - 1))
    sums = samples.new_zeros((len(counts), *samples.shape[1:]))
    return sums.index_add_(0, owner, shares)


def _is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
