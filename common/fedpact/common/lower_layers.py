"""What the layers below the adapter make of each record: computed once, then remembered.

Where only upper layers are adapted (`[adapter] layers_to_transform`), nothing that lies below
them changes in a run, yet a step spends most of its time there. So each record goes through the
lower layers once; from then on a forward pass of it begins at the lowest adapted layer. What is
remembered stays in memory, in a part of what is free, until something else needs the place.

Only where the same record gives the same states each time: no dropout, nothing left to chance.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fedpact.common.layer_stack import LayerStack
from fedpact.common.model import dropouts
from fedpact.common.records import CHANCE, TARGET, Column, EncodedRecords, IntArray

_SHARE: Final = 0.25  # of the free memory, for what is remembered
_MICRO_BATCH: Final = 64

# What lies below the adapter, by digest; what it reads of some records, by digest; whether in bf16.
_Key = tuple[str, str, bool]


@dataclass(frozen=True, eq=False)
class _States:
    """The input of the lowest adapted layer, of each record.

    Attributes:
        values: all tokens end to end, shape [T, hidden].
        offsets: where each record's tokens start, shape [N + 1].
        known: of which records they are there, shape [N].
    """

    values: Tensor
    offsets: IntArray
    known: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def put(self, indices: IntArray, hidden: Tensor) -> None:
        for row, index in enumerate(indices):
            start, end = self.offsets[index], self.offsets[index + 1]
            self.values[start:end] = hidden[row, : end - start]
        self.known[indices] = True

    def batch(self, indices: IntArray, width: int) -> Tensor:
        """Shape [n, width, hidden], float32; behind a record its last token, at which nothing looks."""
        starts, lengths = self.offsets[indices], np.diff(self.offsets)[indices]
        places = np.minimum(np.arange(width), lengths[:, None] - 1)
        tokens = torch.from_numpy(starts[:, None] + places).to(self.values.device)
        return self.values[tokens].float()


# Of all models of this process, the longest unused first: a comparison's have the same base.
_STATES: Final[OrderedDict[_Key, _States]] = OrderedDict()


class LowerLayers:
    """Begins forward passes at the lowest adapted layer, where that can be.

    Args:
        model: with its adapter in it, on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack = LayerStack.of(model)
        self._below = "" if self._stack is None else self._stack.digest()
        self._too_large: set[_Key] = set()
        self._names: WeakKeyDictionary[EncodedRecords, str] = WeakKeyDictionary()

    def learn(
        self, records: EncodedRecords, indices: IntArray, run: Callable[[IntArray], object]
    ) -> _States | None:
        """Send those of some records through the lower layers that have not been there yet.

        All that a step is about to see at once: a few at a time would take much longer.

        Args:
            records: of which some are about to go through the model.
            indices: which, shape [n].
            run: sends some of them through the model, as it is.

        Returns:
            what is remembered of these records; None where nothing can be.
        """
        if self._stack is None or not self._is_fixed(records):
            return None
        key = self._key(records)
        if key in self._too_large:
            return None
        if (states := _STATES.get(key)) is not None:
            _STATES.move_to_end(key)
        unseen = indices if states is None else indices[~states.known[indices]]
        unseen = unseen[np.argsort(records.lengths[unseen], kind="stable")]
        for start in range(0, len(unseen), _MICRO_BATCH):
            rows = unseen[start : start + _MICRO_BATCH]
            hidden = self._stack.capture(partial(run, rows))
            if hidden is None:
                self._stack = None
                return None
            if states is None and (states := self._make_room(key, records, hidden)) is None:
                self._too_large.add(key)
                return None
            states.put(rows, hidden)
        return states

    @contextmanager
    def remembered(
        self,
        records: EncodedRecords,
        indices: IntArray,
        run: Callable[[IntArray], object],
    ) -> Iterator[None]:
        """Within it, a forward pass of some records does not compute what lies below the adapter.

        Args: as of `learn`, which comes first.
        """
        states = self.learn(records, indices, run)
        if self._stack is None or states is None:
            yield
            return
        width = records.main.width(indices, records.multiple)
        with self._stack.begin_with(states.batch(indices, width)):
            yield

    def _is_fixed(self, records: EncodedRecords) -> bool:
        """Whether a record gives the same states each time."""
        return (
            records.main.offsets is not None
            and records.window is None
            and CHANCE not in records.columns
            and not (
                self._model.training
                and any(getattr(layer, name) for layer, name in dropouts(self._model))
            )
        )

    def _key(self, records: EncodedRecords) -> _Key:
        """By what the states of some records are known."""
        if (name := self._names.get(records)) is None:
            name = self._names[records] = _digest(records)
        return self._below, name, torch.is_autocast_enabled(self._device.type)

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _make_room(self, key: _Key, records: EncodedRecords, hidden: Tensor) -> _States | None:
        """Where the states of these records go; None if they would take too much memory."""
        kind = torch.bfloat16 if key[-1] else hidden.dtype
        tokens, width = int(records.offsets[-1]), hidden.shape[-1]
        needed = tokens * width * kind.itemsize
        room = _SHARE * (_free_memory(hidden.device) + _held())
        if needed > room:
            return None
        while needed + _held() > room:
            _STATES.popitem(last=False)
        with torch.inference_mode(mode=False):
            values = torch.empty((tokens, width), dtype=kind, device=hidden.device)
        _STATES[key] = _States(values, records.offsets, np.zeros(len(records), np.bool_))
        return _STATES[key]


def _held() -> int:
    """Bytes of all that is remembered."""
    return sum(states.values.nbytes for states in _STATES.values())


def _digest(records: EncodedRecords) -> str:
    """SHA-256 of what the model reads of some records, in hexadecimal."""
    content = hashlib.sha256()
    for name, column in records.columns.items():
        if not name.startswith(TARGET):
            content.update(name.encode())
            for array in _arrays(column):
                content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _arrays(column: Column) -> Iterator[np.ndarray[Any, Any]]:
    if column.values.size:
        yield column.values
    if column.offsets is not None:
        yield column.offsets


def _free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
