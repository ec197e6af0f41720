"""Whether a trained adapter tells whose records it was trained on.

Two attacks of one who sees the last adapter of a shadow run and holds records of which half
were in it. *By loss* (Yeom et al. 2018): what the model knows better was in. *By likelihood
ratio* (LiRA, Carlini et al. 2022): shadow adapters, trained with and without each record, say
what its loss would be either way. With as few of them as here all records share one variance.

Where the promise is to persons, these are in or out whole, and are told by all their records: by
the mean of their losses, or the sum of their log-likelihood ratios.

These are weaker than the attack of `audit`, and prove nothing about ε; they show what leaks
in a way that is easily imagined.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from fedpact.client.trainer import LocalTraining
from fedpact.client.workbench import Workbench
from fedpact.common import model as models
from fedpact.common.errors import DataError, UsageError
from fedpact.common.planned import plan
from fedpact.common.randomness import Randomness, SecureRandom
from fedpact.common.records import EncodedRecords, IntArray
from fedpact.common.study import Study

Flags = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]

_FALSE_POSITIVE_RATE = 0.01
_FEWEST = 8


@dataclass(frozen=True)
class Separation:
    """How well scores tell members from others.

    Attributes:
        auc: probability that a member scores above another record; 0.5 is chance.
        tpr: share of the members found where at most 1 % of the others are accused.
    """

    auc: float
    tpr: float


@dataclass(frozen=True)
class Membership:
    """What both attacks found.

    Attributes:
        units: how many records (or persons), half of them members.
        by_loss: the attack by loss.
        by_ratio: the attack by likelihood ratio; None without shadow adapters.
    """

    units: int
    by_loss: Separation
    by_ratio: Separation | None


def attack(
    study: Study,
    institution: str,
    records: EncodedRecords,
    workbench: Workbench,
    *,
    shadows: int = 4,
    rng: Randomness | None = None,
    on_training: Callable[[int], None] = lambda _number: None,
) -> Membership:
    """Train on half of the records (or persons) as the study has it, and attack what comes out.

    Args:
        study: whose training, noise included, is attacked.
        institution: as whom, for the sampling rate.
        records: of which a random half is trained on.
        workbench: holds the model; used for nothing else meanwhile.
        shadows: further adapters for the likelihood ratio, an even number.
        rng: for halves, sampling and noise; cryptographic by default.
        on_training: told the number of each training before it starts.

    Raises:
        DataError: there are too few of them.
        UsageError: `shadows` is not even.
        TrainingError: the training failed.
    """
    if shadows < 0 or shadows % 2:
        raise UsageError("Shadow adapters come in pairs: take an even number of them.")
    owners = records.owners
    units = int(owners.max(initial=-1)) + 1
    if units < _FEWEST:
        raise DataError(f"Membership cannot be measured on {units} {study.privacy.unit}s.")
    rng = rng or SecureRandom()

    def losses_after(members: Flags, number: int) -> Scores:
        on_training(number)
        return _losses_after(study, institution, records, members, workbench, rng)

    target = _half(units, rng)
    losses = losses_after(target, 1)
    halves = [half for _ in range(shadows // 2) for half in _halves(units, rng)]
    known = [losses_after(half, number) for number, half in enumerate(halves, start=2)]
    by_ratio = None
    if shadows:
        inside = np.array([half[owners] for half in halves])
        ratios = likelihood_ratio(losses, np.array(known), inside)
        by_ratio = separation(_by_unit(ratios, owners), target)
    means = _by_unit(losses, owners) / np.bincount(owners)
    return Membership(units, separation(-means, target), by_ratio)


def separation(scores: Scores, members: Flags) -> Separation:
    """How well higher scores mean members.

    Args:
        scores: shape [N].
        members: shape [N]; some are and some are not.
    """
    inside, outside = scores[members], scores[~members]
    # Mann and Whitney (1947); ties count half.
    below = rankdata(scores)[members].sum() - len(inside) * (len(inside) + 1) / 2
    accused = int(_FALSE_POSITIVE_RATE * len(outside))
    threshold = np.sort(outside)[-1 - accused]
    return Separation(
        auc=float(below / (len(inside) * len(outside))),
        tpr=float((inside > threshold).mean()),
    )


def likelihood_ratio(losses: Scores, known: Scores, halves: Flags) -> Scores:
    """LiRA's score (Carlini et al. 2022, algorithm 1), with one variance for all.

    Args:
        losses: of each record under the adapter attacked, shape [N].
        known: under each shadow adapter, shape [S, N].
        halves: whether the record was in that one's training, shape [S, N].

    Returns:
        the logarithm of the ratio, shape [N]; its scale is that of the pooled variance.
    """
    confidence, seen = _logit(losses), _logit(known)
    inside = np.mean(seen, axis=0, where=halves)
    outside = np.mean(seen, axis=0, where=~halves)
    variance = np.mean((seen - np.where(halves, inside, outside)) ** 2) + np.finfo(float).eps
    ratios: Scores = ((confidence - outside) ** 2 - (confidence - inside) ** 2) / (2 * variance)
    return ratios


def _losses_after(
    study: Study,
    institution: str,
    records: EncodedRecords,
    members: Flags,
    workbench: Workbench,
    rng: Randomness,
) -> Scores:
    """Each record's loss, shape [N], after a whole run on the members (of all units) alone."""
    model, mechanism = workbench.model(study), plan(study, institution)
    models.set_rank(model.module, study.rank(institution))
    how = LocalTraining.from_study(study, institution, mechanism, model.device)
    rate = study.sample_rate(institution)
    # Fewer than the study's, at the study's rate: a smaller batch, as much noise.
    how = replace(how, batch_size=max(1, round(rate * int(members.sum()))))
    inside = records.select(np.flatnonzero(members[records.owners]))
    weights = models.initial_weights(model.module, study.training.seed)
    for _ in range(study.training.rounds):
        weights = weights.plus(model.trainer.train(weights, inside, how, rng).change)
    return model.trainer.score(weights, records).losses.astype(float)


def _by_unit(scores: Scores, owners: IntArray) -> Scores:
    return np.bincount(owners, weights=scores).astype(np.float64)


def _half(units: int, rng: Randomness) -> Flags:
    members: Flags = rng.permutation(units) < units // 2
    return members


def _halves(units: int, rng: Randomness) -> tuple[Flags, Flags]:
    half = _half(units, rng)
    return half, ~half


def _logit(losses: Scores) -> Scores:
    """log(p / (1 - p)) of the probability p = exp(-loss), which is nearly normal."""
    positive = np.maximum(losses, np.finfo(np.float32).eps)
    logits: Scores = -positive - np.log(-np.expm1(-positive))
    return logits
