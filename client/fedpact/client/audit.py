"""An attack on the site's own DP-SGD: does it keep the ε that the ledger would count?

Canaries (Steinke, Nasr and Jagielski, NeurIPS 2023) join a shadow copy of the training, each
by a fair coin. A canary is sampled, cut into micro-batches and passed through the model like
a record; only its gradient is another: far longer than the clipping norm, and in a direction
of its own. From there on it is clipped, summed and noised like a record's. Who then sees what
is released guesses which canaries were in; `audit_bound` says what being right proves.

Where the promise is to persons, a canary is a whole person with many records, all along the
canary's direction: sampled, chosen among, averaged and clipped as persons are. The same canaries
in a study that promises to records show what that promise is to somebody who has so many.

The attacker is the one whom the ε is promised against: a coordinator that sends the same
adapter every round, sees each round's change under plain SGD, knows the study, and chose the
canaries. Nothing is sent and nothing spent, for nothing is released. What the audit prints
was computed from private data: to publish it would be a release that must be paid for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from scipy.stats import binom
from torch import Tensor

from fedpact.client.audit_bound import epsilon_bound
from fedpact.client.dpsgd import PrivateStep
from fedpact.client.trainer import LocalTraining, Trained, Trainer
from fedpact.client.workbench import Model, Workbench
from fedpact.common import accounting, base_models, neighbours, tasks
from fedpact.common import model as models
from fedpact.common.adapter import FloatArray
from fedpact.common.errors import DataError, StudyError, UsageError
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.model import Precision
from fedpact.common.planned import plan
from fedpact.common.randomness import Randomness, SecureRandom
from fedpact.common.records import EncodedRecords, IntArray
from fedpact.common.study import Study

# So much longer than the clipping norm is a canary: what does not clip it, shows it.
_LENGTH = 100.0
_FAIR = 0.5
# What records add along a canary, at the very most, in clipping norms.
_INTERFERENCE = 0.25
_SELDOM = 0.01
# Records of a canary that is a person.
PERSON_RECORDS = 50


@dataclass(frozen=True)
class Audit:
    """What the attack found.

    Attributes:
        claimed: ε that the ledger would count for what ran, at `delta`.
        covered: ε that follows from it for a canary: the same, but for persons with more records
            than one in a study that promises to records.
        canaries: how many there were, in or out.
        canary_records: records of each.
        guesses: for how many the attacker guessed.
        correct: how many guesses were right.
        confidence: that of `bound`.
        bound: ε is above it with that confidence.
        ceiling: the bound if every guess had been right: a claim above it cannot be refuted.
    """

    claimed: float
    covered: float
    delta: float
    canaries: int
    canary_records: int
    guesses: int
    correct: int
    confidence: float
    bound: float
    ceiling: float

    @property
    def contradicted(self) -> bool:
        """Whether more is lost than the claim allows."""
        return self.bound > self.covered


@dataclass(frozen=True, eq=False)
class Canaries:
    """Directions in the space of the P trained parameters, orthogonal to each other.

    Each is spread evenly over coordinates of its own, drawn from all tensors alike.

    Attributes:
        places: the coordinates of each, shape [m, P // m].
        values: what stands there, of unit norm together, float32, same shape.
    """

    places: IntArray
    values: FloatArray

    @classmethod
    def draw(cls, count: int, parameters: int, rng: Randomness) -> Self:
        """Draw `count` of them.

        Raises:
            UsageError: there are more than parameters.
        """
        spread = parameters // count
        if not spread:
            raise UsageError(
                f"{count} canaries do not fit in {parameters} trained parameters.",
                advice="Take fewer canaries, or a study with a larger adapter.",
            )
        places = rng.permutation(parameters)[: count * spread].reshape(count, spread)
        values = _signs(places.size, rng).reshape(places.shape) / np.sqrt(spread)
        return cls(places, values.astype(np.float32))

    def gradients(self, numbers: IntArray, parameters: int) -> FloatArray:
        """Unit gradients of some of them, shape [n, parameters]; no gradient for -1."""
        gradients = np.zeros((len(numbers), parameters), dtype=np.float32)
        rows = np.flatnonzero(numbers >= 0)
        gradients[rows[:, None], self.places[numbers[rows]]] = self.values[numbers[rows]]
        return gradients

    def along(self, flat: FloatArray) -> npt.NDArray[np.float64]:
        """Inner product of an array of all parameters with each, shape [m]."""
        products: npt.NDArray[np.float64] = (flat[self.places].astype(float) * self.values).sum(
            1
        )
        return products


def audit(
    study: Study,
    institution: str,
    records: EncodedRecords,
    workbench: Workbench,
    *,
    canaries: int,
    guesses: int,
    canary_records: int | None = None,
    confidence: float = 0.95,
    rng: Randomness | None = None,
    on_round: Callable[[int], None] = lambda _round: None,
) -> Audit:
    """Attack a shadow copy of a whole run at one site.

    Args:
        study: the private study whose training is audited.
        institution: as whom, for the sampling rate.
        records: those of the shadow copy, among which the canaries hide; the first of them,
            where all would drown the canaries: an attacker who knows them would subtract them.
        workbench: holds the model; used for nothing else meanwhile.
        canaries: m, each put in by a fair coin.
        guesses: r, how many guesses are made: on the canaries of which the attacker is surest.
        canary_records: k, records of each; without it `PERSON_RECORDS` where the study promises to
            persons, one where it promises to records.
        confidence: of the bound.
        rng: for coins, sampling and noise; cryptographic by default.
        on_round: told each round's number before it runs.

    Raises:
        DataError: there are no records, or it is not known whose they are.
        StudyError: the study is not private, or the institution does not take part.
        UsageError: the numbers do not fit each other, or the adapter.
        TrainingError: the training failed.
    """
    if not 0 < guesses <= canaries:
        raise UsageError(f"{guesses} guesses cannot be made on {canaries} canaries.")
    if not 0 < confidence < 1:
        raise UsageError("A confidence is above 0 and below 1.")
    if not len(records):
        raise DataError("There are no records among which canaries could hide.")
    mechanism = plan(study, institution)
    if mechanism is None:
        raise StudyError(f"{study.study.name} promises no ε that an audit could contradict.")
    of_persons = study.privacy.unit == "person"
    if of_persons and records.persons is None:
        raise DataError("It is not known whose the records are.")
    each = canary_records or (PERSON_RECORDS if of_persons else 1)
    # A person is in a step or not; single records are, each for itself.
    draws = 1 if of_persons else each
    rng = rng or SecureRandom()
    model = workbench.model(study)
    models.set_rank(model.module, study.rank(institution))
    drawn = Canaries.draw(canaries, model.trained.size, rng)
    is_in = rng.random(canaries) < _FAIR
    most = int(_INTERFERENCE * np.sqrt(model.trained.size) / mechanism.sample_rate)
    hiding = records.select(np.flatnonzero(records.owners < max(most, 1)))
    shadow = _ShadowTraining(study, institution, mechanism, model, drawn, is_in, each, hiding)
    evidence, ran = np.zeros(canaries), list[SubsampledGaussian]()
    for number in range(1, study.training.rounds + 1):
        on_round(number)
        seen, trained = shadow.round(rng)
        evidence += log_likelihood_ratio(seen, mechanism, draws)
        ran.append(trained.ran or mechanism)
    never_sampled = (1 - mechanism.sample_rate) ** (study.total_steps * draws)
    correct = _correct(evidence, is_in, guesses, never_sampled)
    delta = study.privacy.target_delta
    claimed = covered = accounting.epsilon(ran, delta)
    if draws > 1:
        whole = replace(mechanism, steps=sum(one.steps for one in ran))
        covered = neighbours.person_epsilon(whole, draws, delta)
    return Audit(
        claimed=claimed,
        covered=covered,
        delta=delta,
        canaries=canaries,
        canary_records=each,
        guesses=guesses,
        correct=correct,
        confidence=confidence,
        bound=epsilon_bound(canaries, guesses, correct, delta, confidence),
        ceiling=epsilon_bound(canaries, guesses, guesses, delta, confidence),
    )


def log_likelihood_ratio(
    seen: npt.NDArray[np.float64], mechanism: SubsampledGaussian, draws: int = 1
) -> npt.NDArray[np.float64]:
    """How much likelier what is seen of each canary is if it was in than if it was out.

    A canary that was in is drawn k times, k ~ Binomial(steps · draws, q), and then seen at k
    under noise of variance steps · σ². No attacker can do better where the mechanism is
    what it is said to be (Neyman and Pearson).

    Args:
        seen: the sum of the steps along each canary, in clipping norms, shape [m].
        mechanism: what is said to have run.
        draws: how often a step may draw it: once, or once for each of its records.

    Returns:
        natural logarithms, shape [m].
    """
    most = mechanism.steps * draws
    times = np.arange(most + 1)
    variance = mechanism.steps * mechanism.noise_multiplier**2
    gained = (np.outer(seen, times) - times**2 / 2) / variance
    weights = binom.logpmf(times, most, mechanism.sample_rate)
    ratios: npt.NDArray[np.float64] = logsumexp(gained + weights, axis=1)
    return ratios


class _ShadowTraining:
    """One site's rounds with canaries after its records."""

    def __init__(
        self,
        study: Study,
        institution: str,
        mechanism: SubsampledGaussian,
        model: Model,
        canaries: Canaries,
        is_in: npt.NDArray[np.bool_],
        each: int,
        records: EncodedRecords,
    ) -> None:
        how = LocalTraining.from_study(study, institution, mechanism, model.device)
        # Under plain SGD of rate 1 the change is the released sum itself.
        self._how = replace(
            how, optimizer="sgd", learning_rate=1.0, weight_decay=0.0, proximal=0.0
        )
        self._start = models.initial_weights(model.module, study.training.seed)
        self._canaries = canaries
        numbers, first = np.repeat(np.flatnonzero(is_in), each), len(records)
        self._trainer = _CanaryTrainer(
            study, model, canaries, numbers, first, how.max_grad_norm
        )
        # In length a canary's record is like some other.
        likenesses = np.arange(len(numbers)) % first
        persons = np.concatenate((records.owners, first + numbers))
        self._records = replace(
            records.select(np.concatenate((np.arange(first), likenesses))), persons=persons
        )

    def round(self, rng: Randomness) -> tuple[npt.NDArray[np.float64], Trained]:
        """One round; what is seen along each canary, in clipping norms, shape [m]."""
        # A sign that is new each round, so that what records add does not add up.
        signs = _signs(len(self._canaries.places), rng)
        self._trainer.signs = signs
        trained = self._trainer.train(self._start, self._records, self._how, rng)
        scale = -self._how.batch_size / self._how.max_grad_norm
        return scale * signs * self._canaries.along(trained.change.flat), trained


class _CanaryTrainer(Trainer):
    """The site's trainer, for records of which those from `first` on are canaries."""

    def __init__(
        self,
        study: Study,
        model: Model,
        canaries: Canaries,
        numbers: IntArray,
        first: int,
        max_grad_norm: float,
    ) -> None:
        super().__init__(
            model.module,
            tasks.for_study(study),
            pad_id=base_models.pad_id(model.tokenizer),
            device=model.device,
            private_step=self._canary_step,
        )
        self._canaries = canaries
        # The number of the canary that each record is; -1 for none.
        self._numbers = np.concatenate((np.full(first, -1), numbers))
        # Long also beside the γ of automatic clipping, however small the clipping norm is.
        self._length = _LENGTH * max(max_grad_norm, 1.0)
        self._parameters = [
            parameter
            for parameter in models.adapter_parameters(model.module).values()
            if parameter.requires_grad
        ]
        self._micro, self._rows = numbers[:0], 1
        self.signs: npt.NDArray[np.float64] = np.ones(len(canaries.places))

    def _canary_step(self, *args: Any, **options: Any) -> PrivateStep:
        return _CanaryStep(self._add_canaries, *args, **options)

    def losses(
        self, records: EncodedRecords, indices: IntArray, precision: Precision, drawn: int = 0
    ) -> Tensor:
        self._micro, self._rows = self._numbers[indices], records.rows(indices)
        losses = super().losses(records, indices, precision, drawn)
        return losses * torch.from_numpy(self._micro < 0).to(losses)

    def _add_canaries(self) -> None:
        """Give the canaries of the micro-batch their gradients, in place of none.

        Each window of a document gets the whole: were they clipped alone, it would show.
        """
        sizes = [parameter.numel() for parameter in self._parameters]
        gradients = self._canaries.gradients(self._micro, sum(sizes))
        gradients *= (self._length * self.signs[self._micro, None]).astype(np.float32)
        pieces = torch.split(torch.from_numpy(gradients), sizes, dim=1)
        for parameter, piece in zip(self._parameters, pieces, strict=True):
            recorded: Tensor = parameter.grad_sample  # type: ignore[attr-defined]
            windows = piece.repeat_interleave(self._rows, dim=0)
            recorded += windows.reshape(recorded.shape).to(recorded)


class _CanaryStep(PrivateStep):
    """The step of DP-SGD; only that gradients are added right after the backward pass."""

    def __init__(self, add_canaries: Callable[[], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._add_canaries = add_canaries

    def _backward(self, losses: Tensor) -> None:
        super()._backward(losses)
        self._add_canaries()


def _correct(
    evidence: npt.NDArray[np.float64],
    is_in: npt.NDArray[np.bool_],
    guesses: int,
    never_sampled: float,
) -> int:
    """How many of the surest guesses are right.

    Args:
        evidence: for having been in, as the logarithm of a ratio, shape [m].
        is_in: the truth, shape [m].
        guesses: how many are made.
        never_sampled: probability that a canary that was in was in no step. Unless it is
            small, there is no telling who was out, and all guesses are "in".
    """
    can_tell_out = never_sampled < _SELDOM
    surest = np.argsort(-(np.abs(evidence) if can_tell_out else evidence), kind="stable")
    guessed = surest[:guesses]
    says_in = (evidence[guessed] > 0) | (not can_tell_out)
    return int((says_in == is_in[guessed]).sum())


def _signs(count: int, rng: Randomness) -> npt.NDArray[np.float64]:
    return np.where(rng.random(count) < _FAIR, 1.0, -1.0)
