"""Records as a model reads them: token ids end to end, so that they can be memory-mapped."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
_SALT = b"fedpact person"


@dataclass(frozen=True, eq=False)
class EncodedRecords:
    """N records, tokenised.

    Attributes:
        ids: token ids of all records end to end, int32, shape [T].
        offsets: where each record starts, and the end, int64, shape [N + 1].
        labels: label numbers, int64, shape [N].
        persons: whose each record is, as `person_numbers` has it, int64, shape [N]; None
            where nobody asked.
    """

    ids: npt.NDArray[np.int32]
    offsets: IntArray
    labels: IntArray
    persons: IntArray | None = None

    @classmethod
    def from_lists(
        cls,
        ids: Sequence[Sequence[int]],
        labels: Sequence[int],
        persons: IntArray | None = None,
    ) -> Self:
        """Lay records end to end."""
        lengths = np.fromiter((len(record) for record in ids), dtype=np.int64, count=len(ids))
        flat = [token for record in ids for token in record]
        return cls(
            np.asarray(flat, dtype=np.int32),
            np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            np.asarray(labels, dtype=np.int64),
            persons,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> IntArray:
        """Tokens of each record, shape [N]."""
        return np.diff(self.offsets)

    def select(self, indices: IntArray) -> Self:
        """Some of the records, in the order of `indices`."""
        pieces = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        lengths = self.lengths[indices]
        return type(self)(
            np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32),
            np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            self.labels[indices],
            None if self.persons is None else self.persons[indices],
        )

    def collate(
        self, indices: IntArray, *, pad_id: int, device: torch.device
    ) -> dict[str, Tensor]:
        """A batch, padded to its longest record.

        Returns:
            `input_ids` and `attention_mask`, int64, shape [n, t]; `labels`, shape [n].
        """
        longest = int(self.lengths[indices].max(initial=1))
        ids = np.full((len(indices), longest), pad_id, dtype=np.int64)
        mask = np.zeros((len(indices), longest), dtype=np.int64)
        for row, index in enumerate(indices):
            record = self.ids[self.offsets[index] : self.offsets[index + 1]]
            ids[row, : len(record)] = record
            mask[row, : len(record)] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": self.labels[indices]}
        return {name: torch.from_numpy(value).to(device) for name, value in batch.items()}


def person_numbers(names: Sequence[str]) -> IntArray:
    """A number for each person, the same wherever the name stands, int64, shape [N].

    64 bits of a hash: it does not follow from who else is there, so that taking one person out
    changes nobody's number. Two names that fall together are treated as one person.
    """
    digests = (
        hashlib.blake2b(name.strip().encode(), digest_size=8, salt=_SALT).digest()
        for name in names
    )
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)
