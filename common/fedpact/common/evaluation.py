"""Loss and metrics of a model on a set of records."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedpact.common.records import EncodedRecords
from fedpact.common.tasks import Task

_BATCH = 64


@dataclass(frozen=True)
class Metrics:
    """What was measured: mean loss over the records, and the share that is right."""

    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Scores:
    """What was measured of each record, in the records' order.

    Attributes:
        losses: float32, shape [records].
        correct: whether the prediction is right; bool, shape [records].
    """

    losses: npt.NDArray[np.float32]
    correct: npt.NDArray[np.bool_]


def evaluate(
    model: nn.Module, records: EncodedRecords, task: Task, *, pad_id: int, device: torch.device
) -> Metrics:
    """Measure the model as it is on `records`, in evaluation mode; its mode is put back.

    Raises:
        ValueError: there are no records.
    """
    if not len(records):
        raise ValueError("no records to evaluate on")
    scores = score(model, records, task, pad_id=pad_id, device=device)
    return Metrics(float(scores.losses.mean()), float(scores.correct.mean()))


def score(
    model: nn.Module, records: EncodedRecords, task: Task, *, pad_id: int, device: torch.device
) -> Scores:
    """The same, record by record; there may be none."""
    if not len(records):
        return Scores(np.empty(0, np.float32), np.empty(0, np.bool_))
    losses, logits = outputs(model, records, task, pad_id=pad_id, device=device)
    return Scores(losses, task.correct(logits, records.labels))


def outputs(
    model: nn.Module, records: EncodedRecords, task: Task, *, pad_id: int, device: torch.device
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the model says of each record, in evaluation mode; its mode is put back.

    Returns:
        losses, shape [N], and logits, shape [N, labels], in the records' order.

    Raises:
        ValueError: there are no records.
    """
    if not len(records):
        raise ValueError("no records to evaluate on")
    order = np.argsort(records.lengths, kind="stable")
    was_training = model.training
    model.eval()
    losses, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            batch = records.collate(order[start : start + _BATCH], pad_id=pad_id, device=device)
            loss, output = task.loss(model, batch)
            losses.append(loss.float().cpu().numpy())
            logits.append(output.float().cpu().numpy())
    model.train(was_training)
    place = np.argsort(order)
    return np.concatenate(losses)[place], np.concatenate(logits)[place]
