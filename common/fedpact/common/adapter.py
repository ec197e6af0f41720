r"""Adapter weights as they travel and as they are kept: one flat array and a manifest.

The names are PEFT's own (`get_peft_model_state_dict`), so that an adapter saved here is an
adapter that PEFT loads. Weights are float32 and little-endian on the wire and on disk.

Beside LoRA's A and B a layer may have a *residual*, a second pair of factors that is frozen: what
some methods add to the layer's own weight W after a round. The layer is then
$W + \frac{\alpha}{r} (B_{res} A_{res} + BA)$.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fedpact.common.errors import WireError

_ORDER = "fedpact.order"
ADAPTER = "adapter_model.safetensors"  # as PEFT calls it

FloatArray = npt.NDArray[np.float32]


LORA_A, LORA_B = ".lora_A.", ".lora_B."
RESIDUAL_A, RESIDUAL_B = ".residual_A.", ".residual_B."


@dataclass(frozen=True)
class Manifest:
    """The names and shapes of the tensors in a flat array, in its order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of values of each tensor."""
        # Not `np.prod`: a shape that a peer made up must not overflow into a small one.
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """The number of values in the flat array."""
        return sum(self.sizes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, in hexadecimal."""
        listing = json.dumps([self.names, self.shapes], separators=(",", ":"))
        return hashlib.sha256(listing.encode()).hexdigest()

    @property
    def residual(self) -> tuple[str, ...]:
        """The names of what was added to the frozen weights."""
        return tuple(n for n in self.names if RESIDUAL_A in n or RESIDUAL_B in n)

    def pairs(self) -> list[tuple[str, str]]:
        """The names of B and A of every LoRA pair."""
        found = [(n, n.replace(LORA_B, LORA_A)) for n in self.names if LORA_B in n]
        return [(b, a) for b, a in found if a in self.names]

    def of_rank(self, rank: int) -> Self:
        """The same, with A and B of the first `rank` components where they have more."""
        shapes = zip(self.names, self.shapes, strict=True)
        return type(self)(self.names, tuple(_of_rank(n, s, rank) for n, s in shapes))

    def select(self, names: Iterable[str]) -> Self:
        """The manifest of some of the tensors, in this manifest's order."""
        wanted = set(names)
        if unknown := wanted - set(self.names):
            raise WireError(f"The adapter has no tensor {min(unknown)}.")
        kept = [(n, s) for n, s in zip(self.names, self.shapes, strict=True) if n in wanted]
        return type(self)(tuple(n for n, _ in kept), tuple(s for _, s in kept))


@dataclass(frozen=True, eq=False)
class Weights:
    """Values for a manifest: an adapter, or what a round changed in it.

    Attributes:
        manifest: names and shapes, P values in all.
        flat: the values, shape [P], float32.
    """

    manifest: Manifest
    flat: FloatArray

    def __post_init__(self) -> None:
        if self.flat.dtype != np.float32 or self.flat.shape != (self.manifest.size,):
            raise WireError(
                f"The array has {self.flat.dtype} values of shape {self.flat.shape}, the "
                f"manifest says float32 of shape ({self.manifest.size},)."
            )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.ArrayLike]) -> Self:
        """Lay tensors end to end, in the mapping's order."""
        arrays = {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}
        manifest = Manifest(tuple(arrays), tuple(a.shape for a in arrays.values()))
        flat = np.concatenate([a.ravel() for a in arrays.values()]) if arrays else np.empty(0)
        return cls(manifest, flat.astype(np.float32, copy=False))

    def tensors(self) -> dict[str, FloatArray]:
        """Name to tensor; each is a view of the flat array."""
        bounds = np.cumsum((0, *self.manifest.sizes))
        return {
            name: self.flat[start:end].reshape(shape)
            for name, shape, start, end in zip(
                self.manifest.names, self.manifest.shapes, bounds[:-1], bounds[1:], strict=True
            )
        }

    def select(self, names: Iterable[str]) -> Self:
        """Some of the tensors, in this manifest's order."""
        kept = self.manifest.select(names).names
        tensors = self.tensors()
        return type(self).from_tensors({name: tensors[name] for name in kept})

    def of_rank(self, rank: int) -> Self:
        """The same, with A and B cut to their first `rank` components where they have more."""
        manifest = self.manifest.of_rank(rank)
        if manifest == self.manifest:
            return self
        kept = {
            name: value[tuple(map(slice, shape))]
            for (name, value), shape in zip(
                self.tensors().items(), manifest.shapes, strict=True
            )
        }
        return type(self).from_tensors(kept)

    def plus(self, change: Self) -> Self:
        """These weights with `change` added to the tensors that it names.

        Raises:
            WireError: `change` names a tensor that these weights lack, or with another shape.
        """
        total, targets = self._copy_for(change, "The change in")
        for name, value in change.tensors().items():
            targets[name] += value
        return total

    def overlaid(self, values: Self) -> Self:
        """These weights with the values of the tensors that `values` names in their place.

        Raises:
            WireError: `values` names a tensor that these weights lack, or with another shape.
        """
        whole, targets = self._copy_for(values, "The value of")
        for name, value in values.tensors().items():
            targets[name][...] = value
        return whole

    def _copy_for(self, other: Self, what: str) -> tuple[Self, dict[str, FloatArray]]:
        """A copy with its tensors to write in, after a look whether those of `other` are there."""
        copy = type(self)(self.manifest, self.flat.copy())
        targets = copy.tensors()
        for name, value in other.tensors().items():
            if name not in targets or targets[name].shape != value.shape:
                raise WireError(f"{what} {name} does not fit the adapter.")
        return copy, targets

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(self.flat).all())

    @property
    def norm(self) -> float:
        """L2 norm over all values."""
        return float(np.linalg.norm(self.flat.astype(np.float64)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of manifest and values together, in hexadecimal."""
        content = hashlib.sha256(self.manifest.digest.encode())
        content.update(self.to_bytes())
        return content.hexdigest()

    def to_bytes(self) -> bytes:
        """The values alone, little-endian float32."""
        return self.flat.astype("<f4", copy=False).tobytes()

    @classmethod
    def from_bytes(cls, manifest: Manifest, data: bytes) -> Self:
        """Read values for a manifest.

        Raises:
            WireError: there are more or fewer bytes than the manifest says.
        """
        if len(data) != 4 * manifest.size:
            raise WireError(
                f"The array has {len(data)} bytes, its manifest says {4 * manifest.size}."
            )
        return cls(manifest, np.frombuffer(data, dtype="<f4").astype(np.float32))

    def to_safetensors(self) -> bytes:
        """The content of a safetensors file; the tensors' order stands in its metadata."""
        from safetensors.numpy import save

        tensors = {name: value.copy() for name, value in self.tensors().items()}
        return save(tensors, metadata={_ORDER: json.dumps(self.manifest.names)})

    def save(self, path: Path) -> None:
        """Write a safetensors file.

        Raises:
            OSError: it cannot be written.
        """
        # Not safetensors' `save_file`: its errors are not the operating system's.
        path.write_bytes(self.to_safetensors())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a safetensors file; tensors are in the order in which they were written.

        Where the file does not say (PEFT's do not), in the order of their names.

        Raises:
            WireError: it is not such a file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                names = json.loads((file.metadata() or {}).get(_ORDER, "null"))
                names = sorted(file.keys()) if names is None else names
                return cls.from_tensors({name: file.get_tensor(name) for name in names})
        except (SafetensorError, ValueError, TypeError) as error:
            raise WireError(f"{path} does not hold weights: {error}.") from error


def first_values(manifest: Manifest, generator: np.random.Generator) -> Weights:
    """A drawn as the weights of `nn.Linear` are (Hu et al. 2022), everything else zero."""
    values = {}
    for name, shape in zip(manifest.names, manifest.shapes, strict=True):
        values[name] = np.zeros(shape, dtype=np.float32)
        if LORA_A in name:
            bound = shape[1] ** -0.5
            values[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
    return Weights.from_tensors(values)


def _of_rank(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    if LORA_A in name:
        return (min(shape[0], rank), *shape[1:])
    if LORA_B in name:
        return (shape[0], min(shape[1], rank))
    return shape
