"""Loss and metrics of a model on a set of records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedpact.common.records import EncodedRecords
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
    model: nn.Module, records: EncodedRecords, task: Task, *, pad_id: int, device: torch.device
) -> Metrics:
    """Measure the model as it is on `records`, in evaluation mode; its mode is put back.

    Raises:
        ValueError: there are no records.
    """
    if not len(records):
        raise ValueError("no records to evaluate on")
    found = score(model, records, task, pad_id=pad_id, device=device)
    more = task.metrics(found.seen)
    return Metrics(float(found.losses.mean()), float(found.scores.mean()), more)


def score(
    model: nn.Module, records: EncodedRecords, task: Task, *, pad_id: int, device: torch.device
) -> Scores:
    """The same, record by record; there may be none."""
    order = np.argsort(records.lengths, kind="stable")
    losses, scores = np.empty(len(order), np.float32), np.empty(len(order), np.float32)
    seen: list[object] = [None] * len(order)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            batch = records.collate(rows, pad_id=pad_id, device=device)
            loss, output = task.loss(model, batch)
            losses[rows] = loss.float().cpu().numpy()
            scores[rows] = task.score(output, batch).float().cpu().numpy()
            for row, what in zip(rows, task.observe(output, batch), strict=True):
                seen[row] = what
    model.train(was_training)
    return Scores(losses, scores, tuple(seen))
