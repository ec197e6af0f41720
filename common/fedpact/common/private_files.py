"""Files and folders that are their owner's alone: keys, settings, and whatever a site keeps."""

import os
import tempfile
from pathlib import Path

from fedpact.common.errors import StorageError

_ADVICE = "Make space or give access, then start again."


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, with those above it; one that exists stays.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        why = f"{folder} cannot be made: {error.strerror}."
        raise StorageError(why, advice=_ADVICE) from error


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read: whole or not at all, and on disk on return.

    Its folder is made if it is not there.

    Raises:
        StorageError: it cannot be written; what stood there before still does.
    """
    private_folder(path.parent)
    try:
        # mkstemp makes files 0600, whatever the umask.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        why = f"{path} cannot be written: {error.strerror}."
        raise StorageError(why, advice=_ADVICE) from error
