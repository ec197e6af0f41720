"""Local training of one round: from an adapter received to what training changed in it.

The model stays resident between rounds, on its device and in training mode; only the
adapter's values are put in. Everything else of a round is new: optimiser, sampling, hooks.
What comes back is the change alone, and what ran, for the ledger. No loss or size leaves.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from fedpact.client.batching import (
    micro_batches,
    person_batches,
    poisson_batches,
    shuffled_batches,
)
from fedpact.client.dpsgd import Clipping, PlainStep, PrivateStep, Step
from fedpact.common import evaluation
from fedpact.common.adapter import Weights
from fedpact.common.errors import DataError, TrainingError
from fedpact.common.evaluation import Metrics, Scores
from fedpact.common.lower_layers import LowerLayers
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.model import (
    Precision,
    adapter_parameters,
    get_adapter,
    precision_on,
    set_adapter,
)
from fedpact.common.randomness import Randomness, SecureRandom
from fedpact.common.records import CHANCE, EncodedRecords, IntArray
from fedpact.common.study import Study
from fedpact.common.study_words import OptimizerName
from fedpact.common.tasks import Task


@dataclass(frozen=True)
class LocalTraining:
    """What a site does in one round.

    Attributes:
        steps: optimiser steps.
        batch_size: records (or persons, where the promise is to them) in a logical batch;
            under DP the expected number, by which sums are divided: from the declared size of
            the data set, not from a count.
        learning_rate: of the optimiser.
        optimizer: `sgd` or `adamw`.
        weight_decay: decoupled weight decay.
        max_grad_norm: L2 norm to which each record's (or person's) gradient is clipped,
            under DP.
        clipping: `flat` cuts what is longer; `automatic` brings every gradient to nearly that norm.
        mechanism: noise and sampling rate under DP, for these steps; None is not private.
        precision: of the forward and backward pass; parameters stay float32.
        max_tokens: the most tokens, padding included, in a micro-batch.
        max_records_per_person: records of one person in a step, at most, where the promise is
            to persons; None: it is to records.
        proximal: μ of FedProx, or λ of Ditto: how strongly each step is pulled to an anchor.
        anew: whether what a task leaves to chance is drawn anew in each step, which only a
            self-test does not want.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    clipping: Clipping = "flat"
    mechanism: SubsampledGaussian | None = None
    precision: Precision = "fp32"
    max_tokens: int = 4096
    max_records_per_person: int | None = None
    proximal: float = 0.0
    anew: bool = True

    def __post_init__(self) -> None:
        if self.mechanism is not None and self.mechanism.steps != self.steps:
            raise ValueError("the mechanism is not for this number of steps")

    @classmethod
    def from_study(
        cls,
        study: Study,
        institution: str,
        mechanism: SubsampledGaussian | None,
        device: torch.device,
    ) -> Self:
        """What a study asks for in a round.

        Args:
            study: the study that was agreed to.
            institution: whose declared size bounds the batch.
            mechanism: what the ledger has reserved; None only if the study is not private.
            device: where training will run; `precision = "auto"` goes by it.

        Raises:
            TrainingError: the study is private and there is no mechanism, or the other way.
        """
        if study.is_private != (mechanism is not None):
            raise TrainingError("Noise was reserved for a study without, or none for one with.")
        return replace(
            cls.plain(study, institution, device),
            max_grad_norm=study.privacy.max_grad_norm,
            clipping=study.privacy.clipping,
            mechanism=mechanism,
            max_records_per_person=study.privacy.max_records_per_person,
            proximal=study.training.proximal_mu,
        )

    @classmethod
    def plain(cls, study: Study, institution: str, device: torch.device) -> Self:
        """A round of a study's training without any promise: what it makes must not leave."""
        training = study.training
        return cls(
            steps=training.local_steps,
            batch_size=study.expected_batch_size(institution),
            learning_rate=training.learning_rate,
            optimizer=training.optimizer,
            weight_decay=training.weight_decay,
            precision=precision_on(device, training.precision),
            # What a layer makes of more does not stay in a CPU's cache.
            max_tokens=2048 if device.type == "cpu" else 4096,
        )


@dataclass(frozen=True, eq=False)
class Trained:
    """What a round of local training gave.

    Attributes:
        change: trained minus received, for what the method trains.
        steps: optimiser steps taken.
        ran: the same as the ledger must count it; None without DP.
    """

    change: Weights
    steps: int
    ran: SubsampledGaussian | None


class Trainer:
    """Trains adapters on one resident model; one call at a time.

    Args:
        model: the PEFT model of a study, on `device` already.
        task: makes losses of batches.
        pad_id: the tokeniser's padding token.
        device: where batches go.
        private_step: makes the step of DP-SGD; an audit gives one that adds canaries.

    Raises:
        TrainingError: the model is not on `device`, or nothing in it is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        *,
        pad_id: int,
        device: torch.device,
        private_step: Callable[..., PrivateStep] = PrivateStep,
    ) -> None:
        if any(parameter.device.type != device.type for parameter in model.parameters()):
            raise TrainingError(f"The model is not on {device}.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise TrainingError("Nothing in the model is trained.")
        self._model = model
        self._task = task
        self._pad_id = pad_id
        self._device = device
        self._private_step = private_step
        self._lower = LowerLayers(model)

    def train(
        self,
        received: Weights,
        records: EncodedRecords,
        how: LocalTraining,
        rng: Randomness | None = None,
        anchor: Weights | None = None,
    ) -> Trained:
        """Train from the adapter received.

        Args:
            received: the whole adapter, what is not trained included.
            records: the site's training records.
            how: steps, optimiser, privacy.
            rng: for sampling and noise; cryptographic by default. Give one with a seed only
                in tests and simulations.
            anchor: what a proximal term pulls to; the adapter received by default.

        Raises:
            ModelError: `received` does not fit the model.
            DataError: there are no records, or it is not known whose they are.
            TrainingError: private training changed nothing, training gave a value that is not finite, or
                there was not enough memory.
        """
        if not len(records):
            raise DataError("There are no records to train on.")
        rng = rng or SecureRandom()
        set_adapter(self._model, received)
        self._model.train()
        steps, lengths, persons = 0, records.padded_lengths, _persons(records, how)
        with memory_errors(), self._step_for(how, rng, anchor or received) as step:
            for batch in islice(logical_batches(len(records), persons, how, rng), how.steps):
                drawn = _drawn(rng) if how.anew and CHANCE in records.columns else 0
                with self._arithmetic(how.precision):
                    self._lower.learn(records, batch, self._forward(records, drawn))
                for micro in micro_batches(batch, lengths, how.max_tokens, persons=persons):
                    owners = None if persons is None else self._tensor(persons[micro])
                    losses = self.losses(records, micro, how.precision, drawn)
                    step.add(losses, owners, records.rows(micro))
                step.apply()
                steps += 1
        ran = how.mechanism and replace(how.mechanism, steps=steps)
        return Trained(self._change_since(received, how), steps, ran)

    def evaluate(
        self, weights: Weights, records: EncodedRecords, precision: Precision = "fp32"
    ) -> Metrics:
        """Measure an adapter; the model is in training mode afterwards as before.

        What comes back is not private.

        Raises:
            ModelError: `weights` do not fit the model.
            TrainingError: there was not enough memory.
            ValueError: there are no records.
        """
        return evaluation.metrics(self.score(weights, records, precision), self._task)

    def score(
        self, weights: Weights, records: EncodedRecords, precision: Precision = "fp32"
    ) -> Scores:
        """The same, record by record; there may be no records.

        Raises:
            ModelError: `weights` do not fit the model.
            TrainingError: there was not enough memory.
        """
        set_adapter(self._model, weights)
        with memory_errors(), self._arithmetic(precision):
            return evaluation.score(
                self._model,
                records,
                self._task,
                pad_id=self._pad_id,
                device=self._device,
                lower=self._lower,
            )

    def _step_for(
        self, how: LocalTraining, rng: Randomness, anchor: Weights
    ) -> AbstractContextManager[Step]:
        optimizer = _optimizer(self._model, how)
        if how.proximal:
            optimizer.register_step_pre_hook(self._pull(how.proximal, anchor))
        if how.mechanism is None:
            return nullcontext(PlainStep(optimizer))
        return self._private_step(
            self._model,
            optimizer,
            noise_multiplier=how.mechanism.noise_multiplier,
            max_grad_norm=how.max_grad_norm,
            expected_batch_size=how.batch_size,
            clipping=how.clipping,
            rng=rng,
        )

    def _pull(self, strength: float, anchor: Weights) -> Callable[..., None]:
        """Adds strength·(w - anchor) to the gradients that the optimiser is about to use.

        Under DP they are clipped, noised and divided by then: the term holds no data, so it
        costs nothing, and it must not take room within the clipping norm.
        """
        values = anchor.tensors()
        pairs = [
            (parameter, torch.tensor(values[name], device=self._device))
            for name, parameter in adapter_parameters(self._model).items()
            if parameter.requires_grad
        ]

        def pull(*_: object) -> None:
            with torch.no_grad():
                for parameter, to in pairs:
                    away = strength * (parameter - to)
                    parameter.grad = away if parameter.grad is None else parameter.grad + away

        return pull

    def losses(
        self, records: EncodedRecords, indices: IntArray, precision: Precision, drawn: int = 0
    ) -> Tensor:
        """The loss of each of some records as the model stands, shape [n].

        Args:
            records: of which some are taken.
            indices: which, shape [n].
            precision: of the forward pass.
            drawn: what was drawn for a step, where the task leaves something to chance.
        """
        run = self._forward(records, drawn)
        with self._arithmetic(precision), self._lower.remembered(records, indices, run):
            return run(indices)

    def _forward(self, records: EncodedRecords, drawn: int) -> Callable[[IntArray], Tensor]:
        """What gives the losses of some records."""

        def run(indices: IntArray) -> Tensor:
            batch = records.collate(indices, pad_id=self._pad_id, device=self._device)
            if drawn:
                batch[CHANCE] ^= drawn
            losses, _ = self._task.loss(self._model, batch)
            return losses

        return run

    def _tensor(self, values: IntArray) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _arithmetic(self, precision: Precision) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bf16")

    def _change_since(self, received: Weights, how: LocalTraining) -> Weights:
        trained = get_adapter(self._model, trainable=True)
        before = received.select(trained.manifest.names)
        change = Weights(trained.manifest, trained.flat - before.flat)
        if not change.is_finite():
            raise TrainingError(
                "Training gave values that are not finite.",
                advice="Take a smaller learning_rate.",
            )
        # Without noise there is nothing to change where every record is fitted already.
        takes_steps = how.mechanism is not None and how.steps and how.learning_rate
        if takes_steps and not change.flat.any():
            raise TrainingError("Training changed nothing in the adapter.")
        return change


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn what torch and NumPy say of memory that is not there into a `TrainingError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch has no error of its own for it.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        raise TrainingError(
            "There is not enough memory for this study.",
            advice="Free memory, take a larger machine, or agree on a smaller max_length.",
        ) from error


def logical_batches(
    records: int, persons: IntArray | None, how: LocalTraining, rng: Randomness
) -> Iterator[IntArray]:
    """Draw what each step sees, without end.

    Args:
        records: how many there are.
        persons: whose each is, from 0 without a gap, where the promise is to persons.
        how: what a round does.
        rng: for the sampling.
    """
    if how.mechanism is None:
        return shuffled_batches(records, how.batch_size, rng)
    if persons is not None and how.max_records_per_person is not None:
        most = how.max_records_per_person
        return person_batches(persons, how.mechanism.sample_rate, most, rng)
    return poisson_batches(records, how.mechanism.sample_rate, rng)


def _drawn(rng: Randomness) -> int:
    """A number below 2^53."""
    return int(rng.random(1)[0] * 2**53)


def _persons(records: EncodedRecords, how: LocalTraining) -> IntArray | None:
    """Whose each record is, from 0 without a gap; None where the promise is to records."""
    if how.max_records_per_person is None:
        return None
    if records.persons is None:
        raise DataError("It is not known whose the records are.")
    return records.owners


def _optimizer(model: nn.Module, how: LocalTraining) -> Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = SGD if how.optimizer == "sgd" else AdamW
    return kind(trained, lr=how.learning_rate, weight_decay=how.weight_decay)
