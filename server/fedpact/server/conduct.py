"""Everything one run needs, put together: the same for SuperLink and for a simulation."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Engine
from torch import nn

from fedpact.common import base_models, logs, tabular, tasks
from fedpact.common import model as models
from fedpact.common.adapter import Weights
from fedpact.common.database import disk_errors
from fedpact.common.errors import FedpactError, RunError, StorageError
from fedpact.common.evaluation import Metrics, evaluate
from fedpact.common.lower_layers import LowerLayers
from fedpact.common.randomness import Randomness, SecureRandom
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study
from fedpact.server import runs
from fedpact.server.card import card
from fedpact.server.releases import CARD
from fedpact.server.round_needs import Exchange, Measure, Terms
from fedpact.server.rounds import Conductor

log = logging.getLogger(__name__)


def conduct(
    engine: Engine,
    run: str,
    exchange: Exchange,
    artifacts: Path,
    terms: Callable[[], Terms],
    model: nn.Module | None = None,
    rng: Randomness | None = None,
) -> Path:
    """Conduct a run from its first round, or from where it stands, to its adapter.

    Args:
        engine: the coordinator's database, in which the run was created.
        run: the run's identifier.
        exchange: what carries packets to the sites.
        artifacts: the folder for adapters.
        terms: reads what the agreement allows, anew for each round.
        model: the study's model, if the caller has it already (a simulation shares one).
        rng: for the coordinator's noise; cryptographic by default. Only simulations give one.

    Returns:
        the folder with the run's adapter, as PEFT reads it.

    Raises:
        FedpactError: why the run cannot go on; its status says the same. A process that is
            told to end leaves it to `runs.interrupt` and `liveness.settle` to say so.
    """
    study, folder = runs.study_of(engine, run)
    if not runs.set_status(engine, run, "running"):
        # SuperLink may come back to a run that it had not begun when it was killed.
        raise RunError(f"The run {run} has ended already, or is conducted by another process.")
    with logs.about(study=study.digest, run=run):
        return _conduct(engine, run, study, folder, exchange, artifacts, terms, model, rng)


def _conduct(
    engine: Engine,
    run: str,
    study: Study,
    folder: Path,
    exchange: Exchange,
    artifacts: Path,
    terms: Callable[[], Terms],
    model: nn.Module | None,
    rng: Randomness | None,
) -> Path:
    record = runs.RunRecord(engine, run, artifacts)
    adapter = artifacts / run
    try:
        with disk_errors():
            artifacts.mkdir(parents=True, exist_ok=True)
        model = model if model is not None else models.build(study, models.choose_device())
        measure = measure_of(study, folder, model)
        conductor = Conductor(
            study, run, exchange, record, terms, measure, rng or SecureRandom()
        )
        if (reached := runs.reached(engine, run, artifacts)) is not None:
            weights = _go_on(conductor, reached)
        else:
            first = models.first_weights(study, study.adapter.start_beside(folder), model)
            weights = conductor.conduct(first.select(study.shared(first.manifest.names)))
        with disk_errors():
            models.save_peft(adapter, weights, study)
    except Exception as error:
        why = str(error) if isinstance(error, FedpactError) else repr(error)
        log.error("the run has failed: %s", why)  # noqa: TRY400 - whoever started it sees where
        with suppress(StorageError):  # a full disk must not hide what ended the run
            runs.set_status(engine, run, "failed", why, os.getpid())
        raise
    runs.set_adapter(engine, run, adapter)
    with disk_errors():
        (adapter / CARD).write_text(card(runs.view(engine, run)), encoding="utf-8")
    status = "stopped" if record.should_stop() else "completed"
    runs.set_status(engine, run, status, record.why_stopped, os.getpid())
    log.info("the run has ended; its adapter is %s", adapter)
    return adapter


def _go_on(conductor: Conductor, reached: runs.Reached) -> Weights:
    """Conduct the rounds after those that have ended, whose last may not have been measured."""
    number, study, measure = reached.number, conductor.study, conductor.measure
    due = number % study.evaluation.every == 0 or number == study.training.rounds
    if measure is not None and due and not reached.measured:
        conductor.record.measured(number, measure(reached.adapter))
    log.info("the run goes on after round %d", number)
    return conductor.conduct(reached.adapter, number + 1, reached.state, reached.clip_norm)


def public_test_set(study: Study, folder: Path) -> EncodedRecords | None:
    """The study's public test set, encoded; None if it has none.

    Args:
        study: whose `[evaluation] data` is read.
        folder: of the study file.

    Raises:
        DataError: it cannot be read, or has another SHA-256 than the study says.
        ModelError: the base model's tokeniser is not at hand.
    """
    found = _test_set(study, folder)
    return found and found[0]


def measure_of(study: Study, folder: Path, model: nn.Module) -> Measure | None:
    """What measures an adapter on the study's public test set; None if it has none.

    Nor is there any where sites keep tensors: what is shared cannot predict by itself.

    Raises:
        DataError: as `public_test_set`.
        ModelError: as `public_test_set`.
    """
    if study.personalisation.keeps_tensors:
        return None
    found = _test_set(study, folder)
    if found is None:
        return None
    records, pad_id = found
    task = tasks.for_study(study)
    device, lower = next(model.parameters()).device, LowerLayers(model)

    def measure(weights: Weights) -> Metrics:
        models.set_rank(model, study.adapter.r)  # a simulation's sites share the model
        models.set_adapter(model, weights)
        return evaluate(model, records, task, pad_id=pad_id, device=device, lower=lower)

    return measure


def _test_set(study: Study, folder: Path) -> tuple[EncodedRecords, int] | None:
    """The public test set, encoded, and the tokeniser's padding token."""
    if study.evaluation.data is None:
        return None
    path = folder / study.evaluation.data
    table = tabular.read(path)
    base_models.require_digest(path, study.evaluation.sha256, f"The public test set {path}")
    task = tasks.for_study(study)
    rows = tabular.rows_for(table, task, path, public=True)
    tokenizer = base_models.load_processor(study)
    records = task.encode(tokenizer, rows, study.training.max_length)
    return records, base_models.pad_id(tokenizer)
