"""Multi-label classification: a text, and as many of the study's labels as hold, or none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.study import Study
from fedpact.common.tasks import Cell, Rows
from fedpact.common.tasks.text import TEXTS, TextTask, fields, label_config

_BETWEEN = "|"


@dataclass(frozen=True, kw_only=True)
class MultiLabelClassification(TextTask):
    """The task `multi-label-classification` of a study."""

    labels: tuple[str, ...]

    @property
    def cells(self) -> Mapping[str, Cell]:
        """A record without any label is a record."""
        return {self.label_column: "maybe"}

    def model_config(self) -> dict[str, Any]:
        """Labels by number, as transformers keeps them."""
        return {**label_config(self.labels), "problem_type": "multi_label_classification"}

    def unknown(self, rows: Rows) -> dict[str, int]:
        """Labels that the study does not know, with how often each stands there."""
        found = (label for cell in rows[self.label_column] for label in _labels(cell))
        return dict(Counter(label for label in found if label not in self.labels))

    def targets(self, labels: Sequence[str]) -> npt.NDArray[np.float32]:
        """Which labels hold, 1 or 0, shape [N, labels]."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        held = np.zeros((len(labels), len(self.labels)), dtype=np.float32)
        for row, cell in enumerate(labels):
            held[row, [numbers[label] for label in _labels(cell)]] = 1
        return held

    def invented_labels(self) -> Sequence[str]:
        """None, one, two, and the other."""
        first, second = self.labels[:2]
        return ["", first, f"{first}{_BETWEEN}{second}", second][: len(TEXTS)]

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, its mean over the labels, shape [n], and logits, [n, labels]."""
        logits = self.logits(model, batch)
        losses = functional.binary_cross_entropy_with_logits(
            logits, batch["labels"], reduction="none"
        )
        return losses.mean(dim=1), logits

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The share of the labels that are rightly said to hold or not to hold, shape [n]."""
        return ((output > 0) == (batch["labels"] > 0)).float().mean(dim=1)

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """Which labels were said to hold, and which do, shape [2, labels] a record."""
        held = np.stack(
            [(output > 0).cpu().numpy(), (batch["labels"] > 0).cpu().numpy()], axis=1
        )
        return list(held)

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """F1 over all decisions, and the mean of the labels' own F1 (0 where one never occurs)."""
        said, held = np.moveaxis(np.asarray(seen, dtype=bool), 1, 0)
        both, either = (said & held).sum(axis=0), said.sum(axis=0) + held.sum(axis=0)
        each = 2 * both / np.maximum(either, 1)
        return {
            "micro_f1": float(2 * both.sum() / max(either.sum(), 1)),
            "macro_f1": float(each.mean()),
        }


def _labels(cell: str) -> set[str]:
    """What stands in a cell; the same label twice counts once."""
    return {label for part in cell.split(_BETWEEN) if (label := part.strip())}


def from_study(study: Study) -> MultiLabelClassification:
    """The task as a study describes it."""
    return MultiLabelClassification(**fields(study), labels=study.task.labels)
