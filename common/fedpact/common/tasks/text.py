"""What tasks on texts have in common: a text or a pair of them, in one record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from fedpact.common.records import Column, EncodedRecords, inputs, person_numbers
from fedpact.common.study import Study
from fedpact.common.tasks import Cell, Rows
from fedpact.common.tasks.windows import Windows

TEXTS = ("one", "a second text, longer", "the third", "and a fourth one of some words")


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """A task whose model reads one text, or two, and says one thing of it.

    Whoever extends it brings `targets` and `outputs`, and says what is lost and measured.
    """

    text_column: str
    text_pair_column: str | None
    label_column: str
    person_column: str | None
    windows: Windows | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that the model reads."""
        pair = self.text_pair_column
        return (self.text_column,) if pair is None else (self.text_column, pair)

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts' and the label's."""
        return (*self.texts, self.label_column)

    @property
    def cells(self) -> Mapping[str, Cell]:
        """All are text."""
        return {}

    @property
    def reads(self) -> Literal["text"]:
        """Text."""
        return "text"

    @property
    def peft_type(self) -> str | None:
        """One output for a sequence."""
        return "SEQ_CLS"

    @property
    def misfit(self) -> tuple[str, str]:
        """Labels that are not among the study's."""
        return (
            "labels that the study does not know",
            "The study's [task] labels must name each; no record is left out.",
        )

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def strata(self, rows: Rows) -> Sequence[str]:
        """By label."""
        return [str(value) for value in rows[self.label_column]]

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Tokenise texts, cut to `max_length` tokens or into windows; number targets and persons."""
        texts = [list(rows[column]) for column in self.texts]
        encoded: Mapping[str, Any] = {}
        if self.windows is not None:
            encoded = {"input_ids": self.windows.encode(processor, texts[0])}
        elif texts[0]:
            encoded = processor(*texts, truncation=True, max_length=max_length)
        more = {}
        if len(texts) > 1 and "token_type_ids" in encoded:
            # Which of the two a token is of; of one text alone the model takes it so itself.
            more["token_type_ids"] = Column.of_rows(encoded["token_type_ids"], np.int8)
        owners = rows.get(self.person_column) if self.person_column else None
        return EncodedRecords.from_lists(
            encoded.get("input_ids", []),
            self.targets(rows[self.label_column]),
            None if owners is None else person_numbers(owners),
            None if self.windows is None else self.windows.length,
            **more,
        )

    def targets(self, labels: Sequence[str]) -> Any:
        """What the model should say of each record, shape [N] or [N, labels]."""
        raise NotImplementedError

    def invented(self) -> Rows:
        """Four texts, of different lengths; pairs of a text with itself."""
        texts = TEXTS if self.windows is None else self.windows.invented(TEXTS)
        return {**dict.fromkeys(self.texts, texts), self.label_column: self.invented_labels()}

    def invented_labels(self) -> Sequence[str]:
        """Labels of four records."""
        raise NotImplementedError

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """Nothing, where a task has no metric but its score."""
        del batch
        return [None] * len(output)

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """None."""
        del seen
        return {}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """What the model says, shape [n, outputs], in fp32; of windows, the mean."""
        read = inputs(batch)
        if self.windows is None:
            logits: Tensor = model(**read).logits.float()
            return logits
        apart, is_there = self.windows.apart(read)
        return self.windows.mean(model(**apart).logits.float(), is_there)


def fields(study: Study) -> dict[str, Any]:
    """A `TextTask`'s fields as a study describes them."""
    task = study.task
    return {
        "text_column": task.text_column,
        "text_pair_column": task.text_pair_column,
        "label_column": task.label_column,
        "person_column": task.person_column,
        "windows": Windows.from_study(study),
    }


@dataclass(frozen=True, kw_only=True)
class TokenTask(TextTask):
    """A task whose model says one of the labels of each token."""

    labels: tuple[str, ...]

    @property
    def peft_type(self) -> str:
        """One output for each token."""
        return "TOKEN_CLS"

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def model_config(self) -> dict[str, Any]:
        """Labels by number, as transformers keeps them."""
        return label_config(self.labels)


def label_config(labels: Sequence[str]) -> dict[str, Any]:
    """Labels by number, as transformers keeps them."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
