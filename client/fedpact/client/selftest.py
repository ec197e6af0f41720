r"""A site's self-test: before a run, that training does what its ε is computed for.

DP-SGD that is wrong looks like DP-SGD that is right: the loss falls and ε counts. So before a
site reserves anything for a run, it trains a few invented records with the study's own model,
through the code that will train the real ones, and compares with what the promise says:

1. The ledger's numbers and the trainer's are the same: σ, q, steps, batch, clipping norm.
2. The model is in training mode; one step moves each tensor that the round trains, and no other.
3. Each record's gradient is the one that autograd gives for that record alone.
4. A step is the clipped sum over the *expected* batch, whatever came.
5. A step without a record is noised and counted, with noise of the size that was reserved.
6. Batches are drawn by Poisson sampling at rate q.

The records are invented, so that a failure tells nothing of the real ones. What is left to
chance (5 and 6) fails a site that is right less than once in $10^8$ runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from fedpact.client import dpsgd, trainer
from fedpact.client.trainer import LocalTraining, Trainer
from fedpact.common import accounting, tasks
from fedpact.common.adapter import Weights
from fedpact.common.errors import TrainingError
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.model import adapter_parameters, dropouts, get_adapter, set_adapter
from fedpact.common.randomness import SecureRandom
from fedpact.common.records import EncodedRecords, person_numbers
from fedpact.common.study import Study

FAILS_BY_CHANCE = 1e-9
_TOLERANCE = 1e-4  # of a gradient's norm: float32 sums in another order
_ROUNDING = 1 + 1e-9
_NO_NOISE, _NO_RECORD = 1e-9, 1e-13
_OWNERS = ("first", "first", "second", "third")
_DRAWS = 400
_EMPTY_STEPS = 4


@dataclass(frozen=True, eq=False)
class _Probe:
    """The study's model with invented records and an adapter in which everything has a gradient."""

    study: Study
    number: int
    module: nn.Module
    trainer: Trainer
    records: EncodedRecords
    weights: Weights
    how: LocalTraining

    def change(self, how: LocalTraining) -> Weights:
        """What some training changes in the probe's adapter."""
        try:
            trained = self.trainer.train(self.weights, self.records, how, SecureRandom())
        except TrainingError as error:
            raise _failure(error.message) from error
        counted = trained.steps == how.steps and trained.ran == how.mechanism
        _require(counted, "Steps that ran do not count.")
        return trained.change


def self_test(
    study: Study,
    institution: str,
    number: int,
    module: nn.Module,
    trainer: Trainer,
    tokenizer: Any,
    how: LocalTraining,
) -> None:
    """Test that a site trains as the study promises. The model's adapter is as before.

    Args:
        study: what is about to run.
        institution: the site's name in it.
        number: of the round, from 1.
        module: the study's model, made ready for it.
        trainer: trains that model.
        tokenizer: the base model's.
        how: what the site is about to do in each round.

    Raises:
        TrainingError: something is not as it must be; the message says what.
    """
    _check_agreement(study, institution, how)
    standing = get_adapter(module)
    records, weights = _records(study, tokenizer), _weights(standing)
    probe = _Probe(study, number, module, trainer, records, weights, how)
    try:
        with _no_dropout(module):
            _check_movement(probe)
            if how.mechanism is not None:
                _check_gradients(probe)
                _check_noise(probe, how.mechanism)
                _check_sampling(how, how.mechanism)
    finally:
        set_adapter(module, standing)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise _failure(what)


def _failure(what: str) -> TrainingError:
    message = f"The self-test before the run failed. {what}"
    return TrainingError(message, advice="The run has spent nothing here.", told=message)


def _check_agreement(study: Study, institution: str, how: LocalTraining) -> None:
    """What the ledger is about to reserve is what the trainer is about to do."""
    ran = how.mechanism
    _require((ran is not None) == study.is_private, "A private study would run without noise.")
    if ran is None:
        return
    promised = study.privacy
    whole_run = SubsampledGaussian(ran.noise_multiplier, ran.sample_rate, study.total_steps)
    _require(
        how.steps == ran.steps == study.training.local_steps
        and how.batch_size == study.expected_batch_size(institution)
        and ran.sample_rate == study.sample_rate(institution)
        and how.max_grad_norm == promised.max_grad_norm
        and how.clipping == promised.clipping
        and how.max_records_per_person == promised.max_records_per_person,
        "The trainer and the ledger do not have the same numbers.",
    )
    cost = accounting.epsilon([whole_run], promised.target_delta)
    _require(
        cost <= promised.target_epsilon * _ROUNDING, "The noise does not keep the run's ε."
    )


def _check_movement(probe: _Probe) -> None:
    """One step moves what the study trains, all of it, and nothing else."""
    how = replace(_one_step(probe.how), learning_rate=_noise_rate(probe.how, 1.0))
    set_adapter(probe.module, probe.weights)
    adapter = adapter_parameters(probe.module)
    before = {name: parameter.detach().clone() for name, parameter in adapter.items()}
    theirs = {id(parameter) for parameter in adapter.values()}
    base = {n: p for n, p in probe.module.named_parameters() if id(p) not in theirs}
    sums = {name: float(parameter.detach().sum()) for name, parameter in base.items()}
    probe.change(how)
    _require(
        all(m.training for m in probe.module.modules()), "The model is not in training mode."
    )
    after = adapter_parameters(probe.module)
    moved = {n for n, tensor in before.items() if not torch.equal(tensor, after[n].detach())}
    _require(
        moved == {name for name in adapter if probe.study.trains(name, probe.number)},
        "A step does not move what the study trains, and that alone.",
    )
    _require(
        sums == {name: float(parameter.detach().sum()) for name, parameter in base.items()},
        "A step moves the base model.",
    )


def _check_gradients(probe: _Probe) -> None:
    """Gradients are each record's own; the step is their clipped sum over the expected batch."""
    set_adapter(probe.module, probe.weights)
    one_by_one = _autograd(probe)
    recorded = _recorded(probe)
    norms = one_by_one.norm(dim=1)
    _require(
        bool(((recorded - one_by_one).norm(dim=1) <= _TOLERANCE * norms).all()),
        "A record's gradient is not its own.",
    )
    units = _by_unit(probe, one_by_one)
    clip = float(units.norm(dim=1).median())  # so that some are clipped, and some are not
    how = replace(
        _one_step(probe.how, noise=_NO_NOISE),
        optimizer="sgd",
        learning_rate=probe.how.batch_size / clip,
        max_grad_norm=clip,
        precision="fp32",
        max_records_per_person=probe.how.max_records_per_person and len(probe.records),
    )
    clipped = units * _factors(units.norm(dim=1), clip, how.clipping)[:, None] / clip
    change = torch.from_numpy(probe.change(how).flat).double()
    error = (change + clipped.sum(dim=0)).norm()
    _require(
        float(error) <= _TOLERANCE * float(clipped.norm(dim=1).sum()),
        "A step is not the clipped sum over the expected batch.",
    )


def _factors(norms: Tensor, clip: float, clipping: dpsgd.Clipping) -> Tensor:
    """What clipping means, written a second time: both would have to be wrong alike."""
    if clipping == "automatic":
        return clip / (norms + 0.01)
    return (clip / (norms + 1e-6)).clamp(max=1.0)


def _check_noise(probe: _Probe, mechanism: SubsampledGaussian) -> None:
    """Steps without a record change every value by noise as it was reserved, each anew."""
    empty = replace(mechanism, sample_rate=_NO_RECORD, steps=_EMPTY_STEPS)
    how = replace(
        probe.how,
        steps=_EMPTY_STEPS,
        mechanism=empty,
        optimizer="sgd",
        weight_decay=0.0,
        proximal=0.0,  # it would draw the noise of one step back in the next
        learning_rate=_noise_rate(probe.how, mechanism.noise_multiplier),
    )
    change = probe.change(how).flat.astype(np.float64)
    _require(
        _is_likely(float(np.sum(change**2 / _EMPTY_STEPS)), stats.chi2(len(change))),
        "A step without a record has not the noise that was reserved.",
    )


def _check_sampling(how: LocalTraining, mechanism: SubsampledGaussian) -> None:
    """Batches of many imagined records (or persons), drawn as the trainer draws them."""
    q, most = mechanism.sample_rate, how.max_records_per_person
    units = min(max(round(8 / q), 64), 2**14)
    # Every person has one record too many, so that each drawn is seen as often as may be.
    each = 1 if most is None else min(most, 3) + 1
    seen = each if most is None else min(most, each)
    owners = np.repeat(np.arange(units), each)
    persons = None if most is None else owners
    sizes, counts = np.zeros(_DRAWS), np.zeros(units)
    batches = trainer.logical_batches(len(owners), persons, how, SecureRandom())
    for number, batch in enumerate(islice(batches, _DRAWS)):
        _require(len(np.unique(batch)) == len(batch), "A record is twice in a batch.")
        drawn, records = np.unique(owners[batch], return_counts=True)
        _require(bool((records == seen).all()), "A person has not the records agreed on.")
        sizes[number] = len(drawn)
        counts[drawn] += 1
    is_poisson = (
        _is_likely(float(counts.sum()), stats.binom(_DRAWS * units, q))
        and _is_dispersed(sizes, units, q)
        and _is_dispersed(counts, _DRAWS, q)
    )
    _require(is_poisson, "Batches are not drawn by Poisson sampling at the rate reserved.")


def _is_likely(value: float, distribution: Any) -> bool:
    """Whether a value is in neither tail."""
    tail = FAILS_BY_CHANCE / 2
    return bool(distribution.cdf(value) >= tail and distribution.sf(value - 1e-9) >= tail)


def _is_dispersed(counts: npt.NDArray[np.float64], trials: int, q: float) -> bool:
    r"""Whether counts vary as independent binomial ones do, neither more nor less.

    The statistic is the chi-square $\sum (x - nq)^2 / nq(1-q)$. Its distribution is the known
    one only where $nq$ is large; Chernoff's bound with the exact binomial holds everywhere.
    """
    if q == 1.0:
        return bool((counts == trials).all())
    mean, variance = trials * q, trials * q * (1 - q)
    reach = int(12 * variance**0.5 + 40)  # beyond lies less than any float can tell
    values = np.arange(max(0, int(mean) - reach), min(trials, int(mean) + reach) + 1)
    squares = (values - mean) ** 2 / variance
    log_chances = stats.binom(trials, q).logpmf(values)
    statistic = float(np.sum((counts - mean) ** 2 / variance))

    def log_bound(tilt: float) -> float:
        terms = log_chances + tilt * squares
        top = float(terms.max())
        growth = top + float(np.log(np.exp(terms - top).sum()))
        return len(counts) * growth - tilt * statistic

    tilts = np.concatenate((-np.geomspace(1e-3, 64, 40), np.geomspace(1e-3, 0.45, 40)))
    return min(map(log_bound, tilts)) >= float(np.log(FAILS_BY_CHANCE / 2))


def _one_step(how: LocalTraining, noise: float | None = None) -> LocalTraining:
    """One step that sees every record, and hides of it what any other pass does."""
    mechanism = how.mechanism
    if mechanism is not None:
        sigma = mechanism.noise_multiplier if noise is None else noise
        mechanism = SubsampledGaussian(sigma, 1.0, 1)
    return replace(how, steps=1, mechanism=mechanism, weight_decay=0.0, anew=False)


def _noise_rate(how: LocalTraining, noise: float) -> float:
    """The learning rate at which one step's noise has the standard deviation 1 under SGD."""
    return how.batch_size / (noise * how.max_grad_norm) if how.mechanism else 1.0


def _autograd(probe: _Probe) -> Tensor:
    """Each record's gradient, from a pass of its own, float64, shape [n, values]."""
    trained = _trained(probe.module)
    rows = []
    for index in range(len(probe.records)):
        loss = probe.trainer.losses(probe.records, np.array([index]), "fp32").sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
    return torch.stack(rows).double().cpu()


def _recorded(probe: _Probe) -> Tensor:
    """The same by the hooks of DP-SGD, all records at once."""
    trained, everyone = _trained(probe.module), np.arange(len(probe.records))
    optimizer = torch.optim.SGD(trained, lr=1.0)
    hooks = dpsgd.RecordHooks(probe.module, loss_reduction="sum")
    try:
        loss = probe.trainer.losses(probe.records, everyone, "fp32").sum()
        loss.backward()  # type: ignore[no-untyped-call]
        rows = probe.records.rows(everyone)
        samples = [dpsgd.by_record(one, len(everyone), rows).flatten(1) for one in trained]
    except TrainingError as error:
        raise _failure("A record's gradient is not recorded.") from error
    finally:
        hooks.cleanup()
        optimizer.zero_grad()
        for parameter in trained:
            parameter.__dict__.pop("grad_sample", None)
    return torch.cat(samples, dim=1).double().cpu()


def _by_unit(probe: _Probe, gradients: Tensor) -> Tensor:
    """What is clipped together: records, or each person's mean."""
    if probe.how.max_records_per_person is None or probe.records.persons is None:
        return gradients
    owners = probe.records.persons
    return torch.stack([gradients[owners == one].mean(dim=0) for one in np.unique(owners)])


def _trained(module: nn.Module) -> list[nn.Parameter]:
    """What is trained, in the order of `get_adapter`."""
    return [p for p in adapter_parameters(module).values() if p.requires_grad]


def _records(study: Study, tokenizer: Any) -> EncodedRecords:
    task = tasks.for_study(study)
    encoded = task.encode(tokenizer, task.invented(), study.training.max_length)
    return replace(encoded, persons=person_numbers(_OWNERS))


def _weights(standing: Weights) -> Weights:
    """An adapter in which no gradient is zero because a factor is."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.05, standing.manifest.size).astype(np.float32)
    return Weights(standing.manifest, values)


@contextmanager
def _no_dropout(module: nn.Module) -> Iterator[None]:
    """Two passes over one record must see the same model."""
    shares = [(layer, name, getattr(layer, name)) for layer, name in dropouts(module)]
    try:
        for layer, name, _ in shares:
            setattr(layer, name, 0.0)
        yield
    finally:
        for layer, name, share in shares:
            setattr(layer, name, share)
