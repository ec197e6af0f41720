"""Text classification: one text or a pair of them, one of the study's labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.study import Study
from fedpact.common.tasks import Rows
from fedpact.common.tasks.text import TEXTS, TextTask, fields, label_config


@dataclass(frozen=True, kw_only=True)
class TextClassification(TextTask):
    """The task `text-classification` of a study."""

    labels: tuple[str, ...]

    def model_config(self) -> dict[str, Any]:
        """Labels by number, as transformers keeps them."""
        return label_config(self.labels)

    def unknown(self, rows: Rows) -> dict[str, int]:
        """Labels that the study does not know, with how often each stands there."""
        return dict(Counter(x for x in rows[self.label_column] if x not in self.labels))

    def targets(self, labels: Sequence[str]) -> list[int]:
        """Numbers of the labels."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [numbers[label] for label in labels]

    def invented_labels(self) -> Sequence[str]:
        """The first two labels in turn."""
        return [self.labels[number % 2] for number in range(len(TEXTS))]

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each record, shape [n], and logits, shape [n, labels], in fp32."""
        logits = self.logits(model, batch)
        return functional.cross_entropy(logits, batch["labels"], reduction="none"), logits

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Whether each record's likeliest label is the right one: 1 or 0, shape [n]."""
        return (output.argmax(dim=1) == batch["labels"]).float()


def from_study(study: Study) -> TextClassification:
    """The task as a study describes it."""
    return TextClassification(**fields(study), labels=study.task.labels)
