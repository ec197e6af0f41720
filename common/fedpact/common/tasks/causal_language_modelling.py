"""Causal language modelling: a text, each token foretold from those before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from fedpact.common.records import Column, EncodedRecords, inputs, person_numbers
from fedpact.common.study import Study
from fedpact.common.tasks import Cell, Rows
from fedpact.common.tasks.language import NOTHING, WritesText, of_tokens
from fedpact.common.tasks.text import TEXTS


@dataclass(frozen=True, kw_only=True)
class CausalLanguageModelling(WritesText):
    """The task `causal-language-modelling` of a study."""

    text_column: str
    person_column: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The text's."""
        return (self.text_column,)

    @property
    def cells(self) -> Mapping[str, Cell]:
        """Text."""
        return {}

    @property
    def reads(self) -> Literal["text"]:
        """Text."""
        return "text"

    @property
    def peft_type(self) -> str:
        """One output for each token."""
        return "CAUSAL_LM"

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_config(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    @property
    def misfit(self) -> tuple[str, str]:
        """Any text will do."""
        return "texts that the study does not know", ""

    def unknown(self, rows: Rows) -> dict[str, int]:
        """None."""
        del rows
        return {}

    def strata(self, rows: Rows) -> Sequence[str]:
        """All texts are of one kind."""
        return [""] * len(rows[self.text_column])

    def invented(self) -> Rows:
        """Four texts, of different lengths."""
        return {self.text_column: TEXTS}

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Tokenise texts, cut to `max_length` tokens; an end that is not cut is to be foretold too."""
        texts = list(rows[self.text_column])
        ids = (
            processor(texts, truncation=True, max_length=max_length)["input_ids"]
            if texts
            else []
        )
        end = processor.eos_token_id
        whole = [
            [*row, end]
            if end is not None and len(row) < max_length and row[-1:] != [end]
            else row
            for row in ids
        ]
        owners = rows.get(self.person_column) if self.person_column else None
        persons = None if owners is None else person_numbers(owners)
        return EncodedRecords({"input_ids": Column.of_rows(whole, np.int32)}, persons)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, its mean over a record's tokens but the first, and as `of_tokens` has it."""
        logits = model(**inputs(batch), use_cache=False).logits[:, :-1]
        is_there = batch["attention_mask"][:, 1:] > 0
        return of_tokens(logits, batch["input_ids"][:, 1:].masked_fill(~is_there, NOTHING))


def from_study(study: Study) -> CausalLanguageModelling:
    """The task as a study describes it."""
    task = study.task
    return CausalLanguageModelling(
        text_column=task.text_column, person_column=task.person_column
    )
