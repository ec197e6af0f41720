"""Sequence to sequence: a text, and the text that is to be written of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedpact.common.records import Column, EncodedRecords, inputs, person_numbers
from fedpact.common.study import Study
from fedpact.common.tasks import Rows
from fedpact.common.tasks.causal_language_modelling import CausalLanguageModelling
from fedpact.common.tasks.language import of_tokens, targets
from fedpact.common.tasks.text import TEXTS


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(CausalLanguageModelling):
    """The task `sequence-to-sequence` of a study."""

    target_column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The text's, and that of what is to be written."""
        return self.text_column, self.target_column

    @property
    def peft_type(self) -> str:
        """A decoder's outputs, one for each token."""
        return "SEQ_2_SEQ_LM"

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def invented(self) -> Rows:
        """Four texts, of different lengths, each to be written as another."""
        return {self.text_column: TEXTS, self.target_column: TEXTS[::-1]}

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Tokenise both texts, each cut to `max_length` tokens."""
        sources, written = list(rows[self.text_column]), list(rows[self.target_column])
        how = {"truncation": True, "max_length": max_length}
        ids = processor(sources, **how)["input_ids"] if sources else []
        labels = processor(text_target=written, **how)["input_ids"] if written else []
        columns = {"input_ids": Column.of_rows(ids, np.int32), "labels": targets(labels)}
        owners = rows.get(self.person_column) if self.person_column else None
        return EncodedRecords(columns, None if owners is None else person_numbers(owners))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, its mean over the tokens to be written, and as `of_tokens` has it."""
        # The model makes the decoder's inputs of the labels; its own loss is of the whole batch.
        logits = model(**inputs(batch), labels=batch["labels"], use_cache=False).logits
        return of_tokens(logits, batch["labels"])


def from_study(study: Study) -> SequenceToSequence:
    """The task as a study describes it."""
    task = study.task
    return SequenceToSequence(
        text_column=task.text_column,
        target_column=task.target_column,
        person_column=task.person_column,
    )
