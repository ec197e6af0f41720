"""Recommendation: of the items that someone took one after another, say which comes next.

As in BERT4Rec (Sun et al. 2019), training hides items anywhere, and evaluation the last one.
An item is one token of the base model, whose tokeniser is public, as the study's `labels` are.
The embeddings stay as they are; what says an item is a layer of its own, trained in full. Every
item is ranked, not a sample of them (Krichene and Rendle 2020).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.errors import ModelError
from fedpact.common.records import CHANCE, Column, EncodedRecords, person_numbers
from fedpact.common.study import Study
from fedpact.common.tasks import Cell, Rows
from fedpact.common.tasks.masking import NOT_SAID, draw, mask_token, mean_by_record, seeds
from fedpact.common.tasks.text import TokenTask, fields

SHARE = 0.2
_FIRST = 10


@dataclass(frozen=True, kw_only=True)
class ItemRecommendation(TokenTask):
    """The task `item-recommendation` of a study."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The items alone."""
        return (self.text_column,)

    @property
    def cells(self) -> Mapping[str, Cell]:
        """A list of items, the latest last."""
        return {self.text_column: "list"}

    @property
    def misfit(self) -> tuple[str, str]:
        """Items that are not among the study's."""
        return (
            "items that the study does not know",
            "The study's [task] labels must name each; no record is left out.",
        )

    def unknown(self, rows: Rows) -> dict[str, int]:
        """Items that the study does not know, and records without any."""
        known, found = set(self.labels), Counter[str]()
        for items in rows[self.text_column]:
            found.update(str(item) for item in items if str(item) not in known)
            if not items:
                found["no item"] += 1
        return dict(found)

    def strata(self, rows: Rows) -> Sequence[str]:
        """By the last item."""
        return [str(items[-1]) for items in rows[self.text_column]]

    def invented(self) -> Rows:
        """Four lists of one to four items."""
        return {self.text_column: [self.labels[:2] * 2, *zip(self.labels[:2]), self.labels[:2]]}

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Number items, the last `max_length` of each list.

        Returns:
            records with the targets `labels`, the number of each item among the study's, and
            `labels_mask`, the token that hides one.

        Raises:
            ModelError: the tokeniser has no token for an item, or nothing to hide it by.
        """
        numbers = {item: number for number, item in enumerate(self.labels)}
        tokens = np.asarray(_tokens(processor, self.labels))
        items = [
            np.asarray([numbers[str(item)] for item in row[-max_length:]])
            for row in rows[self.text_column]
        ]
        columns = {
            "input_ids": Column.of_rows([tokens[row] for row in items], np.int32),
            "labels": Column.of_rows(items, np.int32, NOT_SAID),
            "labels_mask": Column(np.full(len(items), mask_token(processor), np.int64)),
            CHANCE: seeds(items),
        }
        owners = rows.get(self.person_column) if self.person_column else None
        return EncodedRecords(columns, None if owners is None else person_numbers(owners))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, its mean over a record's hidden items, and the last one's logits.

        Shapes [n] and [n, items]. In evaluation mode the last item alone is hidden.
        """
        labels = batch["labels"]
        there = labels != NOT_SAID
        rows, last = torch.arange(len(labels), device=labels.device), there.sum(dim=1) - 1
        if model.training:
            hidden, _ = draw(there, batch[CHANCE], SHARE)
        else:
            hidden = torch.zeros_like(there)
            hidden[rows, last] = True
        ids = torch.where(hidden, batch["labels_mask"].unsqueeze(1), batch["input_ids"])
        logits = self.logits(model, {**batch, "input_ids": ids})
        each = functional.cross_entropy(logits[hidden], labels[hidden], reduction="none")
        return mean_by_record(each, hidden), logits[rows, last]

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Whether the last item is among the ten likeliest: 1 or 0, shape [n]."""
        return (_ranks(output, batch) <= _FIRST).float()

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """The last item's rank, from 1."""
        return list(_ranks(output, batch).tolist())

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """NDCG of the ten likeliest items, of which one is right."""
        ranks = np.asarray(seen, dtype=np.float64)
        gains = np.where(ranks <= _FIRST, 1 / np.log2(ranks + 1), 0.0)
        return {f"ndcg_at_{_FIRST}": float(gains.mean())}


def _ranks(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The last item's rank among all, from 1, shape [n]; after those that are as likely."""
    labels = batch["labels"]
    last = (labels != NOT_SAID).sum(dim=1, keepdim=True) - 1
    right = output.gather(1, labels.gather(1, last))
    return (output >= right).sum(dim=1)


def _tokens(processor: Any, items: Sequence[str]) -> list[int]:
    known = processor.get_vocab()
    if lacking := [item for item in items if item not in known]:
        raise ModelError(
            f"The base model's tokeniser has no token for {len(lacking)} of the study's items, "
            f"among them {lacking[0]!r}.",
            advice="Take a base model of which each item is one token.",
        )
    return [known[item] for item in items]


def from_study(study: Study) -> ItemRecommendation:
    """The task as a study describes it."""
    return ItemRecommendation(**fields(study), labels=study.task.labels)
