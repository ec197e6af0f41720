"""Where in a model the adapter begins: the layers below the lowest adapted one."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedpact.common.model import adapter_parameters


@dataclass(frozen=True)
class LayerStack:
    """A model's layers below the lowest adapted one, at least one, and that one."""

    model: nn.Module
    below: tuple[nn.Module, ...]
    lowest: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> Self | None:
        """What a model has of it; None if there is nothing below, or not just one stack of layers.

        Whatever of the adapter comes before the lowest layer, or stands beside the stack, is not
        above it.
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
        return cls(model, tuple(layers[:number]), layers[number])

    def digest(self) -> str:
        """SHA-256 of what runs before the lowest adapted layer, where and how, in hexadecimal."""
        config: Any = self.model.config
        how = f"{config._attn_implementation} {type(self.model)} {len(self.below)}"  # noqa: SLF001
        content = hashlib.sha256(f"{config.to_json_string()} {how}".encode())
        for parameter in _parameters_before(self.model, self.lowest):
            content.update(f"{parameter.device} {parameter.dtype}".encode())
            content.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return content.hexdigest()

    def capture(self, run: Callable[[], object]) -> Tensor | None:
        """The lowest adapted layer's input in a forward pass, which ends there.

        Args:
            run: does the forward pass.

        Returns:
            shape [n, t, hidden]; None if layers hand on more than that.
        """
        caught: list[Tensor | None] = []

        def catch(_layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            caught.append(args[0] if args else options["hidden_states"])
            raise _ReachedError

        def check(_layer: nn.Module, _args: object, output: object) -> None:
            if not isinstance(output, Tensor):
                caught.append(None)
                raise _ReachedError

        handles = [
            self.below[-1].register_forward_hook(check),
            self.lowest.register_forward_pre_hook(catch, with_kwargs=True),
        ]
        try:
            with torch.no_grad():
                run()
        except _ReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return caught[0]

    @contextmanager
    def begin_with(self, hidden: Tensor) -> Iterator[None]:
        """Within it, forward passes skip the layers below and give the lowest this input.

        Args:
            hidden: shape [n, t, hidden].
        """

        def give(
            _layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (hidden, *args[1:]), options
            return args, {**options, "hidden_states": hidden}

        handle = self.lowest.register_forward_pre_hook(give, with_kwargs=True)
        for layer in self.below:
            layer.forward = _pass_on
        try:
            yield
        finally:
            handle.remove()
            for layer in self.below:
                del layer.forward


class _ReachedError(Exception):
    """The forward pass has come to the lowest adapted layer."""


def _pass_on(hidden_states: Tensor, *_args: object, **_options: object) -> Tensor:
    return hidden_states


def _place(name: str, modules: dict[str, nn.Module]) -> tuple[str | None, int]:
    """The stack of layers in which a module lies, by name, and the layer's number."""
    parts = name.split(".")
    for depth, part in enumerate(parts):
        stack = ".".join(parts[:depth])
        if part.isdecimal() and isinstance(modules[stack], nn.ModuleList):
            return stack, int(part)
    return None, 0


def _parameters_before(model: nn.Module, layer: nn.Module) -> Iterator[nn.Parameter]:
    """Modules are registered in the order in which they run, and so are their parameters."""
    theirs = {id(parameter) for parameter in layer.parameters()}
    return takewhile(lambda parameter: id(parameter) not in theirs, model.parameters())
