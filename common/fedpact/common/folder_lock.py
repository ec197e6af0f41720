"""One process a folder: a lock file, which the kernel lets go however its holder ends."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedpact.common.database import disk_errors
from fedpact.common.errors import UsageError

_ATTEMPTS = 5
_REST_SECONDS = 0.05


def is_held(lock: Path) -> bool:
    """Whether some process holds the lock now; without the file, nobody does."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def hold(lock: Path, taken: Callable[[], UsageError]) -> Iterator[None]:
    """Hold the lock for the block.

    Args:
        lock: the file; made if it is not there.
        taken: what to raise if another process holds it.

    Raises:
        UsageError: `taken`.
        StorageError: the file cannot be made.
    """
    with disk_errors():
        file = lock.open("a")
    with file:
        # Whoever asks whether somebody holds the lock holds it too, for an instant.
        for _ in range(_ATTEMPTS):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_REST_SECONDS)
        else:
            raise taken()
        yield
