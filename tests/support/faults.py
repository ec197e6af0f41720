"""A site that is killed at one point on its way from request to reply, at every one in turn.

`python -m support.faults WORK` loads everything once, then answers the request in WORK in
forked processes, each in a copy of the same home. The k-th of them ends, as by SIGKILL, at its
k-th point: before or after each commit, each write of a file, each part of an answer, each
step of training and the sending of the reply. What a process computed and sent it writes down
itself, beside the home, where no fault takes it back.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from sqlalchemy.engine.default import DefaultDialect

from fedpact.client.dpsgd import PrivateStep
from fedpact.client.gate import Gate
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.client.up import build_site
from fedpact.client.workbench import Workbench
from fedpact.common import database, wire
from support.site_factory import INSTITUTION

KILLED = 9
DELTA = 1e-5


class Fault:
    """Counts the points that a process passes, and ends it at one of them."""

    def __init__(self, last: int | None, record: Path) -> None:
        self._left = last
        self._record = record

    def point(self, name: str) -> None:
        """Go past, or end here."""
        if self._left is None:
            return
        self._left -= 1
        if self._left <= 0:
            self.write("killed", name)
            os._exit(KILLED)

    def write(self, what: str, detail: str = "") -> None:
        """Write down what happened; a line in the page cache survives `_exit`."""
        descriptor = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, (json.dumps([what, detail]) + "\n").encode())
        os.close(descriptor)

    def around(self, owner: Any, name: str, note: str = "") -> None:
        """Make a function a point before and a point after; with `note`, write down it began."""
        function: Callable[..., Any] = getattr(owner, name)
        label = f"{getattr(owner, '__name__', owner)}.{name}"

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.point(f"before {label}")
            if note:
                self.write(note)
            result = function(*args, **kwargs)
            self.point(f"after {label}")
            return result

        setattr(owner, name, watched)

    def tear(self) -> None:
        """Make every file that is written privately one that may be half written."""
        opened = os.fdopen

        def torn(descriptor: int, *args: Any, **kwargs: Any) -> Any:
            file = opened(descriptor, *args, **kwargs)
            if "w" not in file.mode:
                return file
            whole = file.write

            def by_halves(data: bytes) -> int:
                whole(data[: len(data) // 2])
                file.flush()
                self.point("in the middle of a file")
                whole(data[len(data) // 2 :])
                return len(data)

            return _Writing(file, by_halves)

        os.fdopen = torn  # type: ignore[assignment]


class _Writing:
    """A file whose `write` is another."""

    def __init__(self, file: Any, write: Callable[[bytes], int]) -> None:
        self._file = file
        self.write = write

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def answer(
    home: ClientHome, record: Path, last: int | None, request: wire.Packet, bench: Workbench
) -> None:
    """Say what was spent so far, answer the request in this process, and end it."""
    site = build_site(home, INSTITUTION, bench)
    fault = Fault(last, record)
    fault.write("spent", repr(site.ledger.spent("notes", DELTA)))
    for owner, name in (
        (DefaultDialect, "do_commit"),
        (os, "replace"),
        (os, "fsync"),
        (tempfile, "mkstemp"),
        (Ledger, "reserve"),
        (Ledger, "settle"),
        (Gate, "release"),
        (Gate, "_depart"),
        (Workbench, "train"),
    ):
        fault.around(owner, name)
    fault.around(PrivateStep, "apply", note="step")
    fault.around(Workbench, "measure_privately", note="metrics")
    fault.tear()
    packet = site.answer(request)
    header, _ = wire.unpack(packet)
    digest = hashlib.sha256(packet.header.encode() + b"\n" + packet.array).hexdigest()
    fault.point("before sending")
    fault.write(f"sent {header.kind}", digest)
    fault.point("after sending")


def forked(*args: Any) -> bool:
    """Whether a process of its own reached the end of `answer`."""
    pid = os.fork()
    if pid == 0:
        try:
            answer(*args)
        except BaseException:  # noqa: BLE001 - whatever it is must not run the parent's code
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in {0, KILLED}:
        raise SystemExit(f"a process ended with {code}, which no fault explains")
    return code == 0


def main(work: Path) -> None:
    """Kill a site at every point, and then at every point of its second attempt."""
    header = (work / "request.json").read_text(encoding="utf-8")
    request = wire.Packet(header=header, array=(work / "request.bin").read_bytes())
    template, bench = work / "home", Workbench()
    # What a daemon that has answered before has loaded and keeps; in a home of its own.
    shutil.copytree(template, work / "warm")
    build_site(ClientHome(work / "warm"), INSTITUTION, bench).answer(request)
    database._upgrade = lambda *_: None

    def attempt(home: Path, number: int, last: int | None = None) -> bool:
        return forked(ClientHome(home), home.with_suffix(f".{number}"), last, request, bench)

    def points(start: Path, name: str) -> None:
        ended = False
        for last in range(1, 1000):
            home = work / f"{name}-{last:03}"
            shutil.copytree(start, home)
            ended = attempt(home, 1, last)
            attempt(home, 2)
            attempt(home, 3)
            if ended:
                return

    points(template, "once")
    # A home in which a first attempt ended when training had begun.
    half = work / "half"
    shutil.copytree(template, half)
    begun = '"after PrivateStep.apply"'
    records = sorted(work.glob("once-*.1"))
    attempt(half, 0, next(n for n, r in enumerate(records, 1) if begun in r.read_text()))
    points(half, "twice")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
