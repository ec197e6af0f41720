"""What stays warm between rounds: the model with its adapter, and the tokeniser.

A simulation gives one workbench to all its sites: they share the resident base model and
swap their adapters in.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fedpact.client import norm_bound, private_metrics
from fedpact.client.selftest import self_test
from fedpact.client.trainer import LocalTraining, Trained, Trainer, memory_errors
from fedpact.common import base_models, tasks, wire
from fedpact.common import model as models
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import DataError, ModelError
from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian
from fedpact.common.randomness import Randomness, SecureRandom
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study
from fedpact.common.study_learning import Training


@dataclass(frozen=True, eq=False)
class Model:
    """A study's resident model.

    Attributes:
        first: the adapter's first values, all of them.
        adapter: the tensors of it that are sent.
    """

    digest: str
    module: nn.Module
    tokenizer: Any
    trainer: Trainer
    first: Weights
    adapter: Manifest
    device: torch.device

    @property
    def trained(self) -> Manifest:
        """The tensors that are trained now: in the round that was made ready, or the first."""
        return models.get_adapter(self.module, trainable=True).manifest


class Workbench:
    """The resident model of one site (or of a simulation's sites).

    Args:
        device: where models live; a GPU if there is one, by default.
        rng: for sampling and noise; cryptographic by default. Only tests and simulations give
            one with a seed; a site's policy must then allow it.
    """

    def __init__(
        self, device: torch.device | None = None, rng: Randomness | None = None
    ) -> None:
        self._device = device or models.choose_device()
        self._rng = rng
        self._model: Model | None = None
        self._tested: set[tuple[str, LocalTraining, Manifest]] = set()

    @property
    def is_seeded(self) -> bool:
        """Whether sampling and noise come from what was given, and no ε holds."""
        return self._rng is not None

    def model(self, study: Study) -> Model:
        """The study's model: the resident one, or a new one in its place.

        Raises:
            ModelError: the base model is not at hand or not the one that the study names.
            TrainingError: there is not enough memory for it.
        """
        if self._model is None or self._model.digest != study.digest:
            self._model = None  # its memory is free before the next is loaded
            self._tested.clear()
            tokenizer = base_models.load_processor(study)
            with memory_errors():
                built = models.build(study, self._device)
            trainer = Trainer(
                built,
                tasks.for_study(study),
                pad_id=base_models.pad_id(tokenizer),
                device=self._device,
            )
            first = models.get_adapter(built)
            adapter = first.manifest.select(study.shared(first.manifest.names))
            self._model = Model(
                study.digest, built, tokenizer, trainer, first, adapter, self._device
            )
        return self._model

    def fit(self, study: Study, institution: str, weights: Weights, number: int) -> Manifest:
        """Make the study's model ready for a round, before anything is spent on it.

        Args:
            study: whose model it is.
            institution: whose rank the adapter has.
            weights: the adapter received, which must fit it.
            number: of the round, from 1.

        Returns:
            the tensors that the round trains and that leave: not those that sites keep.

        Raises:
            ModelError: it does not fit.
        """
        model = self.model(study)
        rank, residual = study.rank(institution), set(weights.manifest.residual)
        expected, names = model.adapter.of_rank(rank), weights.manifest.names
        received = weights.manifest.select(name for name in names if name not in residual)
        if received != expected or (residual and not study.aggregation.adds_to_base):
            misfit = "The adapter received does not fit the study's model."
            raise ModelError(misfit, told=misfit)
        models.set_rank(model.module, rank)
        if residual:  # then all of the adapter is there: nothing is kept at sites
            models.require_fit(model.module, weights.manifest)
        models.set_trained(model.module, study, number)
        return model.trained.select(study.shared(model.trained.names))

    def self_test(
        self,
        study: Study,
        institution: str,
        run: str,
        number: int,
        mechanism: SubsampledGaussian | None,
    ) -> None:
        """Test once in a run that training does what the study promises, in the round made ready.

        Where rounds train other tensors than the first did, these are tested too. Sites that share this workbench and would do the same are tested once together.

        Raises:
            TrainingError: it does not.
        """
        model = self.model(study)
        how = LocalTraining.from_study(study, institution, mechanism, model.device)
        test = (run, how, model.trained)
        if test in self._tested:
            return
        with memory_errors():
            self_test(
                study, institution, number, model.module, model.trainer, model.tokenizer, how
            )
        self._tested.add(test)

    def train(
        self,
        study: Study,
        institution: str,
        received: Weights,
        records: EncodedRecords,
        mechanism: SubsampledGaussian | None,
    ) -> Trained:
        """Train the round that `fit` made ready, from a whole adapter (`personal.whole`).

        Raises:
            FedpactError: as `Trainer.train`.
        """
        model = self.model(study)
        how = LocalTraining.from_study(study, institution, mechanism, model.device)
        return model.trainer.train(received, records, how, self._rng)

    def largest_change(
        self,
        study: Study,
        institution: str,
        received: Weights,
        mechanism: SubsampledGaussian | None,
    ) -> float:
        """The L2 norm that the round which `fit` made ready can change at most."""
        model = self.model(study)
        how = LocalTraining.from_study(study, institution, mechanism, model.device)
        return norm_bound.largest_change(how, received.select(model.trained.names))

    def train_apart(
        self,
        study: Study,
        institution: str,
        start: Weights,
        records: EncodedRecords,
        *,
        steps: int,
        training: Training | None = None,
        anchor: Weights | None = None,
        pull: float = 0.0,
    ) -> Weights:
        """Train an adapter WITHOUT NOISE, which must not leave. `fit` has made the model ready.

        Args:
            study: whose batch size is taken.
            institution: this one.
            start: a whole adapter.
            records: to train on.
            steps: how many.
            training: whose optimiser and learning rate are taken; the study's by default.
            anchor: what the adapter is pulled to; `start` by default.
            pull: how strongly.

        Returns:
            what it changed.

        Raises:
            FedpactError: as `Trainer.train`.
        """
        model, training = self.model(study), training or study.training
        how = replace(
            LocalTraining.plain(study, institution, model.device),
            steps=steps,
            optimizer=training.optimizer,
            learning_rate=training.learning_rate,
            proximal=pull,
        )
        return model.trainer.train(start, records, how, self._rng, anchor).change

    def measure(
        self, study: Study, weights: Weights, records: EncodedRecords
    ) -> wire.SiteMetrics:
        """Raw loss and accuracy on a site's records. NOT PRIVATE.

        Raises:
            DataError: there is nothing to measure on.
        """
        if not len(records):
            raise DataError("The data set is too small to set a validation split aside.")
        found = self.model(study).trainer.evaluate(weights, records)
        return wire.SiteMetrics(kind="raw", loss=found.loss, accuracy=found.score)

    def measure_privately(
        self,
        study: Study,
        institution: str,
        weights: Weights,
        records: EncodedRecords,
        how: GaussianRelease,
    ) -> wire.SiteMetrics:
        """Metrics on a site's records, with the noise that was reserved.

        Raises:
            TrainingError: there was not enough memory.
        """
        scores = self.model(study).trainer.score(weights, records)
        return private_metrics.release(
            scores, records, study, institution, how, self._rng or SecureRandom()
        )
