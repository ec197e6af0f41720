"""The artifact folder: adapters, updates and states, each named by its digest."""

import os
from pathlib import Path

from fedpact.common.adapter import Weights
from fedpact.common.database import storage_error
from fedpact.common.errors import StorageError, WireError


def keep(folder: Path, weights: Weights) -> None:
    """Write an artifact; one that is there already is the same.

    Raises:
        StorageError: it cannot be written.
    """
    path = _path(folder, weights.digest)
    if path.exists():
        return
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        weights.save(partial)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise storage_error(error) from error


def read(folder: Path, digest: str) -> Weights:
    """Read an artifact.

    Raises:
        StorageError: it cannot be read, or is not what it was.
    """
    path = _path(folder, digest)
    try:
        weights = Weights.load(path)
    except (OSError, WireError) as error:
        raise StorageError(f"{path} cannot be read: {error}.") from error
    if weights.digest != digest:
        raise StorageError(f"{path} does not hold what its name says.")
    return weights


def _path(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.safetensors"
