"""Token classification: entities in a text that comes as a list of words, with a tag for each.

Tags are as in BIO (Ramshaw and Marcus 1995): `B-X` begins an entity of kind X, `I-X` goes on
with it, `O` is outside. The model says a word's tag at the first of its tokens. Words beyond
`max_length` are not learned; they are measured, as if the model had said `O`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.records import Column, EncodedRecords, person_numbers
from fedpact.common.study import Study
from fedpact.common.task_section import OUTSIDE
from fedpact.common.tasks import Cell, Rows
from fedpact.common.tasks.text import TEXTS, TokenTask, fields

_NONE = -100


@dataclass(frozen=True, kw_only=True)
class TokenClassification(TokenTask):
    """The task `token-classification` of a study."""

    @property
    def cells(self) -> Mapping[str, Cell]:
        """A list of words, and as long a list of tags."""
        return {self.text_column: "list", self.label_column: "list"}

    @property
    def misfit(self) -> tuple[str, str]:
        """Tags that are not the study's, and lists that do not go together."""
        return (
            "tags that the study does not know, or that are not one for each word",
            "The study's [task] labels must name each, one for each word; no record is left out.",
        )

    def unknown(self, rows: Rows) -> dict[str, int]:
        """What does not fit: tags, words that are no text, and records with too few of either."""
        known, found = set(self.labels), Counter[str]()
        for words, tags in zip(rows[self.text_column], rows[self.label_column], strict=True):
            if len(words) != len(tags) or not words:
                found[f"{len(tags)} tags for {len(words)} words"] += 1
            found.update(str(tag) for tag in tags if str(tag) not in known)
            found.update(f"{word} as a word" for word in words if not isinstance(word, str))
        return dict(found)

    def strata(self, rows: Rows) -> Sequence[str]:
        """By the first entity's kind, or that there is none."""
        return [
            next((tag[2:] for tag in tags if tag != OUTSIDE), OUTSIDE)
            for tags in rows[self.label_column]
        ]

    def invented(self) -> Rows:
        """Four lists of words, with tags in turn."""
        words = [text.split() for text in TEXTS]
        tags = [[self.labels[n % len(self.labels)] for n in range(len(row))] for row in words]
        return {self.text_column: words, self.label_column: tags}

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Tokenise words, cut to `max_length` tokens.

        Returns:
            records with the targets `labels`, the number of each word's tag, and
            `labels_places`, where its first token stands, -1 where it was cut.
        """
        words, tags = list(rows[self.text_column]), rows[self.label_column]
        numbers = {label: number for number, label in enumerate(self.labels)}
        encoded = processor(
            words, truncation=True, max_length=max_length, is_split_into_words=True
        )
        places = [_firsts(encoded.word_ids(row), len(words[row])) for row in range(len(words))]
        owners = rows.get(self.person_column) if self.person_column else None
        columns = {
            "input_ids": Column.of_rows(encoded["input_ids"], np.int32),
            "labels": Column.of_rows(
                [[numbers[tag] for tag in row] for row in tags], np.int32, _NONE
            ),
            "labels_places": Column.of_rows(places, np.int32, -1),
        }
        return EncodedRecords(columns, None if owners is None else person_numbers(owners))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, its mean over a record's words, [n], and each word's tag, [n, words].

        The tags come as their numbers: `O` where a word was cut, -100 beyond the last word.
        """
        logits = self.logits(model, batch)
        places = batch["labels_places"]
        seen = places >= 0
        at = places.clamp(min=0).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        of_words = logits.gather(1, at)
        targets = batch["labels"].masked_fill(~seen, _NONE)
        losses = functional.cross_entropy(
            of_words.transpose(1, 2), targets, ignore_index=_NONE, reduction="none"
        )
        outside = self.labels.index(OUTSIDE)
        said = of_words.argmax(dim=-1).masked_fill(~seen, outside)
        said = said.masked_fill(batch["labels"] == _NONE, _NONE)
        return losses.sum(dim=1) / seen.sum(dim=1).clamp(min=1), said

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """F1 of each record's entities, [n]; 1 where there are none and none was said.

        Not the share of the words that are right: most are outside, so that a model which
        finds nothing would seem a good one.
        """
        scores = [
            _f1(self._entities(said), self._entities(held))
            for said, held in zip(output, batch["labels"], strict=True)
        ]
        return torch.tensor(scores)

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """The tags that were said and those that hold, of each record."""
        return [
            (self._tags(said), self._tags(held))
            for said, held in zip(output, batch["labels"], strict=True)
        ]

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """Precision, recall and F1 over the entities of all records, by seqeval."""
        from seqeval.metrics import f1_score, precision_score, recall_score

        said, held = [one for one, _ in seen], [one for _, one in seen]
        measured = {"precision": precision_score, "recall": recall_score, "entity_f1": f1_score}
        return {
            name: float(measure(held, said, zero_division=0))
            for name, measure in measured.items()
        }

    def _tags(self, numbers: Tensor) -> list[str]:
        return [self.labels[number] for number in numbers.tolist() if number != _NONE]

    def _entities(self, numbers: Tensor) -> set[tuple[str, int, int]]:
        """Kind, first and last word of each entity."""
        from seqeval.metrics.sequence_labeling import get_entities

        return set(get_entities(self._tags(numbers)))


def _firsts(words_of_tokens: Sequence[int | None], words: int) -> list[int]:
    """Where each word's first token stands; -1 where it has none."""
    places = [-1] * words
    for place, word in enumerate(words_of_tokens):
        if word is not None and places[word] < 0:
            places[word] = place
    return places


def _f1(said: set[Any], held: set[Any]) -> float:
    return 2 * len(said & held) / (len(said) + len(held)) if said or held else 1.0


def from_study(study: Study) -> TokenClassification:
    """The task as a study describes it."""
    return TokenClassification(**fields(study), labels=study.task.labels)
