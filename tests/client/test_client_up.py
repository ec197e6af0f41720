"""What the composition of a site adds to its parts."""

import ctypes
import sys
from pathlib import Path

import pytest

from fedpact.client.up import give_back_memory


def resident_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def has_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not has_glibc(), reason="elsewhere nothing is given back by hand")
def test_memory_that_was_freed_below_what_stays_is_given_back():
    blocks = [bytearray(4000) for _ in range(50_000)]
    stays = blocks[-1]
    del blocks
    before = resident_mib()
    give_back_memory()
    assert before - resident_mib() > 150
    assert len(stays) == 4000
