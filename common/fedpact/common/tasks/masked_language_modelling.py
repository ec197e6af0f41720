"""Masked language modelling: to say the words that were hidden, in texts without labels.

It makes a base model know a field's language before a study on few labels begins. What is
hidden, and how, is as in BERT (Devlin et al. 2019). The head is the base model's own and stays
as it is: it is tied to the embeddings, and they are not trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.records import CHANCE, Column, EncodedRecords, inputs, person_numbers
from fedpact.common.study import Study
from fedpact.common.tasks import Rows
from fedpact.common.tasks.masking import (
    NOT_SAID,
    draw,
    logits_at,
    mask_token,
    mean_by_record,
    seeds,
)
from fedpact.common.tasks.text import TEXTS, TextTask, fields

SHARE = 0.15
# Of what is hidden, so much is masked; half of the rest becomes any word, half stays.
_MASKED, _ANY = 0.8, 0.9
_MOST_BITS = 500.0  # e to this is still a number


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModelling(TextTask):
    """The task `masked-language-modelling` of a study."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The text alone."""
        return (self.text_column,)

    @property
    def peft_type(self) -> None:
        """PEFT has no name for it."""
        return

    @property
    def misfit(self) -> tuple[str, str]:
        """Any text fits."""
        return "", ""

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def model_config(self) -> dict[str, Any]:
        """The base model's own."""
        return {}

    def unknown(self, rows: Rows) -> dict[str, int]:
        """None: any text can be learned from."""
        del rows
        return {}

    def strata(self, rows: Rows) -> Sequence[str]:
        """By length: words, to the next power of two."""
        return [str(1 << len(text.split()).bit_length()) for text in rows[self.text_column]]

    def invented(self) -> Rows:
        """Four texts, of different lengths."""
        return {self.text_column: TEXTS}

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Tokenise texts, cut to `max_length` tokens.

        Returns:
            records with the targets `labels`, each token that may be hidden, and
            `labels_mask`, what it is hidden by.

        Raises:
            ModelError: the tokeniser has nothing to hide it by.
        """
        encoded = processor(
            list(rows[self.text_column]),
            truncation=True,
            max_length=max_length,
            return_special_tokens_mask=True,
        )
        ids = encoded["input_ids"]
        targets = [
            np.where(special, NOT_SAID, row)
            for row, special in zip(ids, encoded["special_tokens_mask"], strict=True)
        ]
        columns = {
            "input_ids": Column.of_rows(ids, np.int32),
            "labels": Column.of_rows(targets, np.int32, NOT_SAID),
            "labels_mask": Column(np.full(len(ids), mask_token(processor), np.int64)),
            CHANCE: seeds(ids),
        }
        owners = rows.get(self.person_column) if self.person_column else None
        return EncodedRecords(columns, None if owners is None else person_numbers(owners))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, its mean over a record's hidden tokens, shape [n]; zero without any.

        And, for each record, the sum of those losses, how many were said rightly, and of how
        many, shape [n, 3].
        """
        labels = batch["labels"]
        drawn, chances = draw(labels != NOT_SAID, batch[CHANCE], SHARE)
        hidden = self._hide(model, batch, drawn, chances)
        logits = logits_at(model, inputs(batch) | {"input_ids": hidden}, drawn).float()
        each = functional.cross_entropy(logits, labels[drawn], reduction="none")
        right = (logits.argmax(dim=-1) == labels[drawn]).float()
        means = mean_by_record(each, drawn)
        counts = drawn.sum(dim=1)
        seen = torch.stack(
            [means.detach() * counts, mean_by_record(right, drawn) * counts, counts], dim=1
        )
        return means, seen

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The share of a record's hidden tokens that were said rightly, shape [n]."""
        del batch
        return output[:, 1] / output[:, 2].clamp(min=1)

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """What was lost of each record, and of how many tokens."""
        del batch
        return [(lost, count) for lost, _, count in output.tolist()]

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """Perplexity over all hidden tokens."""
        lost, count = np.asarray(seen, dtype=np.float64).sum(axis=0)
        return {"perplexity": float(np.exp(min(lost / max(count, 1.0), _MOST_BITS)))}

    @staticmethod
    def _hide(
        model: Any, batch: Mapping[str, Tensor], drawn: Tensor, chances: Tensor
    ) -> Tensor:
        """What the model reads, shape [n, tokens]."""
        ids, words = batch["input_ids"], model.get_input_embeddings().num_embeddings
        masked = torch.where(
            drawn & (chances < _MASKED), batch["labels_mask"].unsqueeze(1), ids
        )
        # A chance between the two bounds is as good as one more draw.
        among = (chances.double() - _MASKED) / (_ANY - _MASKED)
        any_word = (among.clamp(0, 1) * words).long().clamp(max=words - 1)
        return torch.where(drawn & (chances >= _MASKED) & (chances < _ANY), any_word, masked)


def from_study(study: Study) -> MaskedLanguageModelling:
    """The task as a study describes it."""
    return MaskedLanguageModelling(**fields(study))
