"""Text classification: one text, one of the study's labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.records import EncodedRecords, person_numbers
from fedpact.common.study import Study


@dataclass(frozen=True)
class TextClassification:
    """The task `text-classification` of a study."""

    labels: tuple[str, ...]
    text_column: str
    label_column: str
    person_column: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The text's and the label's."""
        return (self.text_column, self.label_column)

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_config(self) -> dict[str, Any]:
        """Labels by number, as transformers keeps them."""
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
        }

    def unknown(self, rows: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Labels that the study does not know, with how often each stands there."""
        return dict(Counter(x for x in rows[self.label_column] if x not in self.labels))

    def encode(
        self, tokenizer: Any, rows: Mapping[str, Sequence[str]], max_length: int
    ) -> EncodedRecords:
        """Tokenise texts, cut to `max_length` tokens, and number the labels and persons."""
        texts = list(rows[self.text_column])
        encoded = tokenizer(texts, truncation=True, max_length=max_length) if texts else {}
        numbers = {label: number for number, label in enumerate(self.labels)}
        owners = rows.get(self.person_column) if self.person_column else None
        return EncodedRecords.from_lists(
            encoded.get("input_ids", []),
            [numbers[x] for x in rows[self.label_column]],
            None if owners is None else person_numbers(owners),
        )

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each record, shape [n], and logits, shape [n, labels], in fp32."""
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits.float()
        return functional.cross_entropy(logits, batch["labels"], reduction="none"), logits

    def correct(
        self, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Whether each record's likeliest label is the right one, shape [n]."""
        return np.asarray(logits.argmax(axis=1) == labels)


def from_study(study: Study) -> TextClassification:
    """The task as a study describes it."""
    task = study.task
    return TextClassification(
        task.labels, task.text_column, task.label_column, task.person_column
    )
