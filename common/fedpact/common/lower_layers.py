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
from itertools import takewhile
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fedpact.common.model import adapter_parameters, dropouts
from fedpact.common.records import CHANCE, TARGET, Column, EncodedRecords, IntArray

_SHARE: Final = 0.25  # of the free memory, for what is remembered
_MICRO_BATCH: Final = 64

# What lies below the adapter, by digest; what it reads of some records, by digest; whether in bf16.
_Key = tuple[str, str, bool]


@dataclass(frozen=True)
class _Stack:
    """A model's layers below the lowest adapted one, and that one."""

    below: tuple[nn.Module, ...]
    lowest: nn.Module


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
        self._stack = _stack_of(model)
        self._below = "" if self._stack is None else _digest_below(model, self._stack)
        self._too_large: set[_Key] = set()
        self._names: WeakKeyDictionary[EncodedRecords, str] = WeakKeyDictionary()

    def learn(
        self, records: EncodedRecords, indices: IntArray, run: Callable[[IntArray], object]
    ) -> None:
        """Send those of some records through the lower layers that have not been there yet.

        All that a step is about to see at once: a few at a time would take much longer.

        Args:
            records: of which some are about to go through the model.
            indices: which, shape [n].
            run: sends some of them through the model, as it is.
        """
        if self._stack is None or not self._is_fixed(records):
            return
        key = self._key(records)
        if key in self._too_large:
            return
        states = _STATES.get(key)
        unseen = indices if states is None else indices[~states.known[indices]]
        unseen = unseen[np.argsort(records.lengths[unseen], kind="stable")]
        for start in range(0, len(unseen), _MICRO_BATCH):
            rows = unseen[start : start + _MICRO_BATCH]
            hidden = self._capture(self._stack, rows, run)
            if hidden is None:
                self._stack = None
                return
            if states is None and (states := self._make_room(key, records, hidden)) is None:
                self._too_large.add(key)
                return
            states.put(rows, hidden)

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
        self.learn(records, indices, run)
        states = _STATES.get(key := self._key(records)) if self._stack else None
        if self._stack is None or states is None or not self._is_fixed(records):
            yield
            return
        _STATES.move_to_end(key)
        width = records.main.width(indices, records.multiple)
        with _beginning(self._stack, states.batch(indices, width)):
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

    @staticmethod
    def _capture(
        stack: _Stack, rows: IntArray, run: Callable[[IntArray], object]
    ) -> Tensor | None:
        """The states of some records, shape [n, t, hidden]; None if layers say more than that."""
        caught: list[Tensor | None] = []

        def catch(_layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            caught.append(args[0] if args else options["hidden_states"])
            raise _ReachedError

        def check(_layer: nn.Module, _args: object, output: object) -> None:
            if not isinstance(output, Tensor):
                caught.append(None)
                raise _ReachedError

        handles = [
            stack.below[-1].register_forward_hook(check),
            stack.lowest.register_forward_pre_hook(catch, with_kwargs=True),
        ]
        try:
            with torch.no_grad():
                run(rows)
        except _ReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return caught[0]

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


class _ReachedError(Exception):
    """The forward pass has come to the lowest adapted layer."""


@contextmanager
def _beginning(stack: _Stack, hidden: Tensor) -> Iterator[None]:
    """A forward pass that skips the layers below, and gives the lowest adapted one its input."""

    def give(
        _layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (hidden, *args[1:]), options
        return args, {**options, "hidden_states": hidden}

    handle = stack.lowest.register_forward_pre_hook(give, with_kwargs=True)
    for layer in stack.below:
        layer.forward = _pass_on
    try:
        yield
    finally:
        handle.remove()
        for layer in stack.below:
            del layer.forward


def _pass_on(hidden_states: Tensor, *_args: object, **_options: object) -> Tensor:
    return hidden_states


def _stack_of(model: nn.Module) -> _Stack | None:
    """The layers below the lowest adapted one; None if there are none, or no one stack of layers.

    Whatever of the adapter comes before the lowest layer, or stands beside the stack, is not above
    it.
    """
    modules = dict(model.named_modules())
    adapted = [name for name, module in modules.items() if hasattr(module, "lora_A")]
    places = {_place(name, modules) for name in adapted}
    stacks = {stack for stack, _ in places}
    if len(stacks) != 1 or (stack := stacks.pop()) is None:
        return None
    layers, number = list(modules[stack].children()), min(number for _, number in places)
    ours = {id(parameter) for parameter in adapter_parameters(model).values()}
    before = _parameters_before(model, layers[number])
    if number == 0 or any(id(parameter) in ours for parameter in before):
        return None
    return _Stack(tuple(layers[:number]), layers[number])


def _place(name: str, modules: dict[str, nn.Module]) -> tuple[str | None, int]:
    """The stack of layers in which a module lies, by name, and the layer's number."""
    parts = name.split(".")
    for depth, part in enumerate(parts):
        stack = ".".join(parts[:depth])
        if part.isdecimal() and isinstance(modules[stack], nn.ModuleList):
            return stack, int(part)
    return None, 0


def _digest_below(model: nn.Module, stack: _Stack) -> str:
    """SHA-256 of what runs before the lowest adapted layer, and of where and how, in hexadecimal."""
    config: Any = model.config
    content = hashlib.sha256(f"{config.to_json_string()} {len(stack.below)}".encode())
    content.update(f"{config._attn_implementation} {type(model)}".encode())  # noqa: SLF001
    for parameter in _parameters_before(model, stack.lowest):
        content.update(f"{parameter.device} {parameter.dtype}".encode())
        content.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _parameters_before(model: nn.Module, layer: nn.Module) -> Iterator[nn.Parameter]:
    """Modules are registered in the order in which they run, and so are their parameters."""
    theirs = {id(parameter) for parameter in layer.parameters()}
    return takewhile(lambda parameter: id(parameter) not in theirs, model.parameters())


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
