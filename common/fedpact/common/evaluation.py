"""Loss and metrics of a model on a set of records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedpact.common.lower_layers import LowerLayers
from fedpact.common.records import EncodedRecords, IntArray
from fedpact.common.tasks import Task

_BATCH = 64


@dataclass(frozen=True)
class Metrics:
    """What was measured.

    Attributes:
        loss: mean over the records.
        score: mean over the records of the task's score, in [0, 1]: of classification, the
            share that is right.
        more: what the task measures of all records together, by name, such as F1.
    """

    loss: float
    score: float
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured of each record, in the records' order.

    Attributes:
        losses: float32, shape [records].
        scores: how good the prediction is, in [0, 1]; float32, shape [records].
        seen: what the task's metrics need of each record.
    """

    losses: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    seen: tuple[object, ...] = ()


def evaluate(
    model: nn.Module,
    records: EncodedRecords,
    task: Task,
    *,
    pad_id: int,
    device: torch.device,
    lower: LowerLayers | None = None,
) -> Metrics:
    """Measure the model as it is on `records`, in evaluation mode; its mode is put back.

    Args:
        model: with its adapter in it.
        records: to measure on.
        task: the study's.
        pad_id: the tokeniser's padding token.
        device: where the model is.
        lower: remembers what the model's lower layers made of the records before.

    Raises:
        ValueError: there are no records.
    """
    found = score(model, records, task, pad_id=pad_id, device=device, lower=lower)
    return metrics(found, task)


def metrics(found: Scores, task: Task) -> Metrics:
    """What the scores of some records come to.

    Raises:
        ValueError: there are no records.
    """
    if not len(found.losses):
        raise ValueError("no records to evaluate on")
    more = task.metrics(found.seen)
    return Metrics(float(found.losses.mean()), float(found.scores.mean()), more)


def score(
    model: nn.Module,
    records: EncodedRecords,
    task: Task,
    *,
    pad_id: int,
    device: torch.device,
    lower: LowerLayers | None = None,
) -> Scores:
    """The same, record by record; there may be none."""
    lower = lower or LowerLayers(model)
    order = np.argsort(records.lengths, kind="stable")

    def run(rows: IntArray) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        batch = records.collate(rows, pad_id=pad_id, device=device)
        return *task.loss(model, batch), batch

    losses, scores = np.empty(len(order), np.float32), np.empty(len(order), np.float32)
    seen: list[object] = [None] * len(order)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            with lower.remembered(records, rows, run):
                loss, output, batch = run(rows)
            losses[rows] = loss.float().cpu().numpy()
            scores[rows] = task.score(output, batch).float().cpu().numpy()
            for row, what in zip(rows, task.observe(output, batch), strict=True):
                seen[row] = what
    model.train(was_training)
    return Scores(losses, scores, tuple(seen))
