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
    """What was measured of each record, in any order.

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
    order = np.argsort(records.lengths, kind="stable")
    was_training = model.training
    model.eval()
    losses = [np.empty(0, np.float32)]
    correct = [np.empty(0, np.bool_)]
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            batch = records.collate(order[start : start + _BATCH], pad_id=pad_id, device=device)
            loss, output = task.loss(model, batch)
            losses.append(loss.float().cpu().numpy())
            labels = batch["labels"].cpu().numpy()
            correct.append(task.correct(output.cpu().numpy(), labels))
    model.train(was_training)
    return Scores(np.concatenate(losses), np.concatenate(correct))
