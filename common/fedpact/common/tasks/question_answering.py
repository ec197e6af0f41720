"""Extractive question answering: a question, a context, and where in it the answer stands.

Records have the fields of SQuAD: of several answers the first is learned, and the best is
measured. A record without any has none in its context (as in SQuAD 2): its span is the first
token, and so is that of an answer beyond `max_length`, which cuts the context only.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.errors import DataError
from fedpact.common.records import Column, EncodedRecords, inputs, person_numbers
from fedpact.common.study import Study
from fedpact.common.tasks import Cell, Rows
from fedpact.common.tasks.text import TEXTS, TextTask, fields

LONGEST_ANSWER = 30
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_SPAN = (0, 0)


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(TextTask):
    """The task `question-answering` of a study: the text is the question, its pair the context."""

    @property
    def cells(self) -> Mapping[str, Cell]:
        """Answers are an object of two lists, `text` and `answer_start`."""
        return {self.label_column: "object"}

    @property
    def peft_type(self) -> Literal["QUESTION_ANS"]:
        """Two outputs for each token."""
        return "QUESTION_ANS"

    @property
    def misfit(self) -> tuple[str, str]:
        """Answers that are not in their contexts."""
        return (
            "answers that do not stand in their contexts where they say",
            "`answer_start` is the number of characters before `text`; no record is left out.",
        )

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def model_config(self) -> dict[str, Any]:
        """Where a span starts, and where it ends."""
        return {"num_labels": 2}

    def unknown(self, rows: Rows) -> dict[str, int]:
        """Answers that do not stand where they say, with how often."""
        contexts, answers = rows[self.texts[1]], rows[self.label_column]
        return dict(
            Counter(
                wrong
                for context, cell in zip(contexts, answers, strict=True)
                for wrong in _misplaced(context, cell)
            )
        )

    def strata(self, rows: Rows) -> Sequence[str]:
        """By the question's first word: who, when, how."""
        return [question.split()[0].lower() for question in rows[self.text_column]]

    def invented(self) -> Rows:
        """Four contexts of which a word is asked, the last without an answer."""
        answers = [{"text": [word := text.split()[-1]], "answer_start": [text.rindex(word)]}
                   for text in TEXTS[:-1]]  # fmt: skip
        return {
            self.text_column: TEXTS[::-1],
            self.texts[1]: TEXTS,
            self.label_column: [*answers, {"text": [], "answer_start": []}],
        }

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Tokenise questions, each cut to half of `max_length`, with what fits of its context.

        Returns:
            records with the target `labels`, first and last token of the answer, shape [N, 2];
            and what a span is made text with: `labels_context`, its characters;
            `labels_starts` and `labels_ends`, where in it each token stands (0 and 0: not in
            it); and `labels_answers`, the characters of a JSON list.

        Raises:
            DataError: `max_length` leaves no room for a context.
        """
        contexts = list(rows[self.texts[1]])
        questions = _cut(processor, rows[self.text_column], max_length)
        encoded = processor(
            questions,
            contexts,
            truncation="only_second",
            max_length=max_length,
            return_offsets_mapping=True,
        )
        where = [
            [
                place if of == 1 else _NO_SPAN
                for of, place in zip(encoded.sequence_ids(row), places, strict=True)
            ]
            for row, places in enumerate(encoded["offset_mapping"])
        ]
        answers = rows[self.label_column]
        spans = [_span(places, cell) for places, cell in zip(where, answers, strict=True)]
        columns = {"input_ids": Column.of_rows(encoded["input_ids"], np.int32)}
        if "token_type_ids" in encoded:
            columns["token_type_ids"] = Column.of_rows(encoded["token_type_ids"], np.int8)
        columns |= {
            "labels": Column(np.asarray(spans, dtype=np.int64).reshape(-1, 2)),
            "labels_starts": Column.of_rows([[a for a, _ in one] for one in where], np.int32),
            "labels_ends": Column.of_rows([[b for _, b in one] for one in where], np.int32),
            "labels_context": _letters(contexts),
            "labels_answers": _letters([json.dumps(cell["text"]) for cell in answers]),
        }
        owners = rows.get(self.person_column) if self.person_column else None
        return EncodedRecords(columns, None if owners is None else person_numbers(owners))

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, its mean over start and end, [n], and both's logits, [n, 2, tokens]."""
        found: Any = model(**inputs(batch))
        logits = torch.stack([found.start_logits, found.end_logits], dim=1).float()
        padding = batch["attention_mask"] == 0
        logits = logits.masked_fill(padding.unsqueeze(1), torch.finfo(logits.dtype).min)
        losses = functional.cross_entropy(
            logits.transpose(1, 2), batch["labels"], reduction="none"
        )
        return losses.mean(dim=1), logits

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """SQuAD's F1 of each record's best span and the answer most like it, shape [n]."""
        return torch.tensor([
            max(_f1(said, answer) for answer in answers)
            for said, answers in _said(output, batch)
        ])  # fmt: skip

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """Whether each record's best span is an answer, as SQuAD compares."""
        return [
            any(_words(said) == _words(answer) for answer in answers)
            for said, answers in _said(output, batch)
        ]

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """The share of the records of which the best span is an answer."""
        return {"exact_match": float(np.mean(seen))}


def _misplaced(context: str, cell: Mapping[str, Any]) -> Iterator[str]:
    texts, starts = cell.get("text"), cell.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        yield f"an object with {', '.join(cell)}"
        return
    for text, start in zip(texts, starts, strict=True):
        fits = isinstance(text, str) and isinstance(start, int) and text.strip()
        if not fits or start < 0 or not context.startswith(text, start):
            yield f"{text} at {start}"


def _cut(processor: Any, questions: Sequence[str], max_length: int) -> list[str]:
    room = max_length - int(processor.num_special_tokens_to_add(pair=True))
    most = room // 2
    if most < 1:
        raise DataError(
            f"The study's max_length of {max_length} leaves no room for a context.",
            advice="A question has half of it at most: agree on a larger one.",
        )
    encoded = processor(
        list(questions),
        add_special_tokens=False,
        truncation=True,
        max_length=most,
        return_offsets_mapping=True,
    )
    places = encoded["offset_mapping"]
    return [
        q[: p[-1][1]] if len(p) == most else q for q, p in zip(questions, places, strict=True)
    ]


def _span(places: Sequence[tuple[int, int]], cell: Mapping[str, Any]) -> tuple[int, int]:
    """First and last token of the first answer; the first token twice where there is none."""
    if not cell["text"]:
        return _NO_SPAN
    start = cell["answer_start"][0]
    end = start + len(cell["text"][0].rstrip())
    inside = [n for n, (low, high) in enumerate(places) if low < end and high > start]
    if not inside or places[inside[-1]][1] < end:
        return _NO_SPAN
    return inside[0], inside[-1]


def _letters(texts: Sequence[str]) -> Column:
    """Texts as the numbers of their characters: 0, which fills a batch, ends none."""
    return Column.of_rows([np.fromiter(map(ord, text), np.int32) for text in texts], np.int32)


def _said(output: Tensor, batch: Mapping[str, Tensor]) -> Iterator[tuple[str, list[str]]]:
    """What each record's best span says, and its answers: one that is empty where none is."""
    spans = _best_spans(output, batch["labels_ends"] > batch["labels_starts"]).tolist()
    for row, (first, last) in enumerate(spans):
        start = int(batch["labels_starts"][row, first])
        end = int(batch["labels_ends"][row, last])
        context = batch["labels_context"][row, start:end].tolist()
        answers = "".join(chr(n) for n in batch["labels_answers"][row].tolist() if n)
        yield "".join(map(chr, context)), json.loads(answers) or [""]


def _best_spans(logits: Tensor, in_context: Tensor) -> Tensor:
    """First and last token of each record's likeliest span, shape [n, 2]: 0 and 0 is none."""
    tokens = logits.shape[-1]
    places = torch.arange(tokens, device=logits.device)
    ahead = places - places[:, None]
    allowed = in_context[:, :, None] & in_context[:, None, :]
    allowed &= (ahead >= 0) & (ahead < LONGEST_ANSWER)
    allowed[:, 0, 0] = True
    sums = logits[:, 0, :, None] + logits[:, 1, None, :]
    best = sums.masked_fill(~allowed, -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack([best // tokens, best % tokens], dim=1)


def _words(text: str) -> list[str]:
    """A text as SQuAD compares it: no case, punctuation or articles (Rajpurkar et al. 2016)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(said: str, held: str) -> float:
    one, other = Counter(_words(said)), Counter(_words(held))
    if not one or not other:
        return float(one == other)
    return 2 * (one & other).total() / (one.total() + other.total())


def from_study(study: Study) -> QuestionAnswering:
    """The task as a study describes it."""
    return QuestionAnswering(**fields(study))
