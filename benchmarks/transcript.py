"""Seconds to verify a transcript of 100,000 entries, on one core.

Entries are written as a round's are, each with a body of some fields and every hundredth the head
of another party. What is timed is what `fedpact audit verify` does with the file.
"""

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from _report import arguments, report
from fedpact.common.identity import SigningKey, new_signing_key
from fedpact.common.transcript import NO_HASH, Entry, Head, Json
from fedpact.common.transcript_check import header_line, verify

ENTRIES = 100_000


def write(path: Path, key: SigningKey) -> None:
    author, previous = "North Hospital", NO_HASH
    other = Head.sign(key, author="coordinator", length=1, last="ab" * 32).document
    round_: dict[str, Json] = {"run": "run-1", "epsilon": 0.25, "sha256": "cd" * 32, "steps": 4}
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{header_line(author, key.public_key())}\n")
        for number in range(ENTRIES):
            entry = Entry.sign(
                key,
                number=number,
                moment=datetime.now(UTC),
                author=author,
                kind="update-sent" if number % 100 else "head-seen",
                body={**round_, "round": number} if number % 100 else other,
                previous=previous,
            )
            previous = entry.hash
            file.write(f"{entry.line}\n")
        file.write(f"{Head.sign(key, author=author, length=ENTRIES, last=previous).line}\n")


def main(form: str) -> None:
    key = new_signing_key()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "transcript.jsonl")
        start = time.perf_counter()
        write(path, key)
        writing = time.perf_counter() - start
        start, busy = time.perf_counter(), time.process_time()
        with path.open("rb") as lines:
            found = verify(lines, key.public_key())
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        assert len(found.hashes) == ENTRIES
        parts: dict[str, float | int | str] = {
            "entries": ENTRIES,
            "bytes": path.stat().st_size,
            "verify_cpu_seconds": busy,
            "microseconds_per_entry": seconds / ENTRIES * 1e6,
            "write_seconds": writing,
        }
    report(
        title="verifying a transcript of 100,000 entries, seconds",
        figure=seconds,
        parts=parts,
        target="<= 30",
        form=form,
    )


if __name__ == "__main__":
    main(arguments(__doc__).format)
