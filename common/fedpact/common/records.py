"""Records as a model reads them: arrays end to end, so that they can be memory-mapped.

A record has some columns. What the model reads comes first (token ids, a waveform, pixels),
with what goes with it; what it should say comes under names that begin with `labels`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
Array = npt.NDArray[np.number]
_SALT = b"fedpact person"
TARGET: Final = "labels"
# Where a task leaves something to chance: a number of each record, which decides it. Training
# draws one more in each step, and mixes it in.
CHANCE: Final = "labels_chance"
# Texts are padded to a multiple of it: a CPU compiles its matrix products anew for each shape.
MULTIPLE: Final = 4


@dataclass(frozen=True, eq=False)
class Column:
    """One field of N records: with as many values in each record, or with more in some.

    Attributes:
        values: without `offsets` shape [N, ...]; with them all records' values end to end,
            shape [T].
        offsets: where each record's values start, and the end, int64, shape [N + 1].
        pad: what shorter records are filled with in a batch.
    """

    values: Array
    offsets: IntArray | None = None
    pad: float = 0

    @classmethod
    def of_rows(cls, rows: Sequence[Any], dtype: npt.DTypeLike, pad: float = 0) -> Self:
        """Lay records of any length end to end; each is a list of numbers or an array."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        pieces = [np.asarray(row, dtype=dtype) for row in rows]
        flat = np.concatenate(pieces) if pieces else np.empty(0, dtype=dtype)
        return cls(flat, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), pad)

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """Values of each record, shape [N]."""
        if self.offsets is None:
            return np.full(len(self), int(np.prod(self.values.shape[1:])), dtype=np.int64)
        return np.diff(self.offsets)

    def of(self, index: int) -> Array:
        """One record's values."""
        if self.offsets is None:
            row: Array = self.values[index]
            return row
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def select(self, indices: IntArray) -> Self:
        """Some of the records, in the order of `indices`."""
        if self.offsets is None:
            return replace(self, values=self.values[indices])
        rows = [self.of(index) for index in indices]
        return type(self).of_rows(rows, self.values.dtype, self.pad)

    def width(self, indices: IntArray, multiple: int = 1) -> int:
        """To how many values some records are padded, at least the longest's.

        The next multiple, where some record of all is as long as that.
        """
        lengths = self.lengths
        longest = int(lengths[indices].max(initial=1))
        return min(-(-longest // multiple) * multiple, int(lengths.max(initial=1)))

    def batch(self, indices: IntArray, pad: float | None = None, multiple: int = 1) -> Array:
        """Some of the records, padded to `width`, shape [n, ...]; numbers as torch counts."""
        wide = np.int64 if np.issubdtype(self.values.dtype, np.integer) else np.float32
        if self.offsets is None:
            return self.values[indices].astype(wide)
        width = self.width(indices, multiple)
        filled = np.full((len(indices), width), self.pad if pad is None else pad, dtype=wide)
        for row, index in enumerate(indices):
            record = self.of(index)
            filled[row, : len(record)] = record
        return filled


@dataclass(frozen=True, eq=False)
class EncodedRecords:
    """N records, as a task has encoded them.

    Attributes:
        columns: by the names that the model knows, the main input first.
        persons: whose each record is, as `person_numbers` has it, int64, shape [N]; None
            where nobody asked.
        values_per_token: how many values of the main input the model makes one token of: 1
            for text, 320 for the wav2vec family, 768 for patches of 16 by 16 pixels.
        window: how many values of the main input go through the model in one row; a longer
            record is some windows of that length end to end. None: each record is one row.
    """

    columns: Mapping[str, Column]
    persons: IntArray | None = None
    values_per_token: int = 1
    window: int | None = None

    @classmethod
    def from_lists(
        cls,
        ids: Sequence[Sequence[int]],
        labels: Sequence[Any] | npt.NDArray[Any],
        persons: IntArray | None = None,
        window: int | None = None,
        **more: Column,
    ) -> Self:
        """Records of text.

        Args:
            ids: each record's token ids.
            labels: each record's target, shape [N] or [N, k]: numbers of labels, or amounts
                as an array of floats.
            persons: as above.
            window: as above.
            more: further columns.
        """
        amounts = isinstance(labels, np.ndarray) and labels.dtype.kind == "f"
        columns = {
            "input_ids": Column.of_rows(ids, np.int32),
            **more,
            TARGET: Column(np.asarray(labels, dtype=np.float32 if amounts else np.int64)),
        }
        return cls(columns, persons, window=window)

    def __len__(self) -> int:
        return len(self.main)

    @property
    def main(self) -> Column:
        """The main input."""
        return next(iter(self.columns.values()))

    @property
    def ids(self) -> Array:
        """Values of the main input of all records: of text, token ids."""
        return self.main.values

    @property
    def offsets(self) -> IntArray:
        """Where each record of text starts, and the end, shape [N + 1]."""
        if self.main.offsets is None:
            raise ValueError("these records have no lengths of their own")
        return self.main.offsets

    @property
    def labels(self) -> Array:
        """The target, where there is one column of it."""
        return self.columns[TARGET].values

    @property
    def lengths(self) -> IntArray:
        """Tokens of each record, shape [N]: read or to be written, whichever are more."""
        read = -(-self.main.lengths // self.values_per_token)
        target = self.columns.get(TARGET)
        if target is None or target.offsets is None:
            return read
        return np.maximum(read, target.lengths)

    @property
    def padded_lengths(self) -> IntArray:
        """The same, as a batch of records like it is padded."""
        return -(-self.lengths // self.multiple) * self.multiple

    @property
    def multiple(self) -> int:
        """A multiple of how many values a batch is padded to: of text in one row, a few."""
        return MULTIPLE if self.values_per_token == 1 and self.window is None else 1

    @property
    def owners(self) -> IntArray:
        """Whose each record is, from 0 without a gap, shape [N]; each is alone if nobody asked."""
        if self.persons is None:
            return np.arange(len(self))
        return np.unique(self.persons, return_inverse=True)[1]

    def rows(self, indices: IntArray) -> int:
        """Rows of a batch for each of its records: as many as the longest has windows."""
        if self.window is None:
            return 1
        return -(-int(self.main.lengths[indices].max(initial=1)) // self.window)

    def select(self, indices: IntArray) -> Self:
        """Some of the records, in the order of `indices`."""
        return replace(
            self,
            columns={name: column.select(indices) for name, column in self.columns.items()},
            persons=None if self.persons is None else self.persons[indices],
        )

    def collate(
        self, indices: IntArray, *, pad_id: int, device: torch.device
    ) -> dict[str, Tensor]:
        """A batch, each column padded to its longest record, or a little more.

        Args:
            indices: which records, shape [n].
            pad_id: the tokeniser's padding token, for `input_ids`.
            device: where the batch goes.

        Returns:
            every column by its name, int64 or float32, shape [n, ...]; and `attention_mask`,
            int64, shape [n, t], where records have lengths of their own.
        """
        batch: dict[str, Array] = {
            name: column.batch(indices, pad_id if name == "input_ids" else None, self.multiple)
            for name, column in self.columns.items()
        }
        if self.main.offsets is not None:
            lengths = self.main.lengths[indices]
            places = np.arange(self.main.width(indices, self.multiple))
            batch["attention_mask"] = (places < lengths[:, None]).astype(np.int64)
        return {name: torch.from_numpy(value).to(device) for name, value in batch.items()}


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch the model reads: all but the targets."""
    return {name: value for name, value in batch.items() if not name.startswith(TARGET)}


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
