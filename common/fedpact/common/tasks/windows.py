"""Long texts in overlapping windows, of which one prediction is made.

A record is all of its windows end to end. Where there are some, each is full: the last begins
where it ends with the text. So a record of some windows has a multiple of their length, and no
other record is longer than one: where a window begins need not be kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Self

from torch import Tensor

from fedpact.common.study import Study


@dataclass(frozen=True)
class Windows:
    """How long texts are cut.

    Attributes:
        length: tokens of a window, special ones included.
        overlap: tokens that a window has in common with the one before; the last may have more.
        most: windows of a text; what is after them is not read.
    """

    length: int
    overlap: int
    most: int

    @classmethod
    def from_study(cls, study: Study) -> Self | None:
        """As a study describes them; None where long texts are cut off."""
        task = study.task
        if task.max_windows == 1:
            return None
        return cls(study.training.max_length, task.window_overlap, task.max_windows)

    def encode(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        """Each text's windows end to end, every one with its special tokens."""
        if not texts:
            return []
        # Without `verbose` it warns of what is longer than a model reads, which no window is.
        found = tokenizer(list(texts), return_special_tokens_mask=True, verbose=False)
        pairs = zip(found["input_ids"], found["special_tokens_mask"], strict=True)
        return [self.cut(ids, special) for ids, special in pairs]

    def cut(self, ids: Sequence[int], special: Sequence[int]) -> list[int]:
        """One text's windows end to end.

        Args:
            ids: the text's tokens, with special ones at its ends.
            special: 1 for those.
        """
        if len(ids) <= self.length:
            return list(ids)
        before = sum(1 for _ in takewhile(bool, special))
        after = sum(1 for _ in takewhile(bool, reversed(special)))
        body = ids[before : len(ids) - after]
        size = self.length - before - after
        step = max(size - self.overlap, 1)
        last = len(body) - size
        starts = [min(start, last) for start in range(0, last + step, step)][: self.most]
        head, tail = list(ids[:before]), list(ids[len(ids) - after :])
        return [id_ for s in starts for id_ in (*head, *body[s : s + size], *tail)]

    def invented(self, texts: Sequence[str]) -> list[str]:
        """Texts as they are, but for the last, which is longer than a window."""
        *short, last = texts
        return [*short, " ".join([last] * (self.length // len(last.split()) + 1))]

    def apart(self, read: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Make rows of windows, those of a record next to each other.

        Args:
            read: what the model reads, shape [n, t].

        Returns:
            the same, shape [n * rows, t / rows]; and which rows hold a window, shape [n, rows].
        """
        width = read["attention_mask"].shape[1]
        rows = -(-width // self.length)
        apart = {name: value.reshape(-1, width // rows) for name, value in read.items()}
        mask = apart["attention_mask"].clone()
        mask[:, 0] = 1  # attention over nothing at all is not a number
        is_there = apart["attention_mask"][:, 0].reshape(-1, rows)
        return {**apart, "attention_mask": mask}, is_there

    def mean(self, logits: Tensor, is_there: Tensor) -> Tensor:
        """Each record's logits, shape [n, outputs], from its windows', [n * rows, outputs]."""
        shares = is_there / is_there.sum(dim=1, keepdim=True)
        return (logits.reshape(*is_there.shape, -1) * shares[:, :, None]).sum(dim=1)
