"""Synthetic adverse-event reports in three institutions' voices, for demo and experiments.

A hospital notes, a drug maker's call centre transcribes, citizens write to a health agency:
the same medicines and reactions in three styles, lengths and label balances. The label says
whether the event is *serious* by the regulatory criteria (death, danger to life, hospital
stay or its prolongation, disability, birth defect, medically important: ICH E2A, II.B).

The same arguments give the same texts in every process and on every Python version: all
chance is drawn from `random.Random(text).random()`, the sequence that Python promises to
keep. How a report is written, and what makes the task hard, is in `report_writer`. The
medicines are invented and nobody described exists.
"""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal

from fedpact.simulations.report_writer import write_report

SERIOUS: Final = "serious"
NOT_SERIOUS: Final = "not serious"
PUBLIC_TEST_RECORDS: Final = 600

_README: Final = """\
Everything in this folder is synthetic.

The reports were written by a program from lists of phrases. No real person is described,
no report was ever filed, and the medicines do not exist. Any likeness is chance.

Each row is one adverse-event report: its text, and its label, "serious" or "not serious".
A few per cent of the labels are wrong on purpose.

"""


@dataclass(frozen=True)
class Report:
    """One adverse-event report and its label."""

    text: str
    label: str


@dataclass(frozen=True)
class Voice:
    """One institution, how it writes and what it sees.

    Attributes:
        key: The name of its data file, without the ending.
        institution: What people call it.
        sector: academia, industry or government.
        records: How many reports it holds unless told otherwise.
        serious_share: The share of its reports that are serious.
        label_noise: The share of its labels that are wrong.
    """

    key: str
    institution: str
    sector: Literal["academia", "industry", "government"]
    records: int
    serious_share: float
    label_noise: float


VOICES: Final[tuple[Voice, ...]] = (
    Voice("hospital", "University Hospital", "academia", 2400, 0.60, 0.03),
    Voice("maker", "Drug Maker", "industry", 2100, 0.38, 0.03),
    Voice("agency", "Health Agency", "government", 1800, 0.44, 0.05),
)


@dataclass(frozen=True)
class DemoData:
    """What `write_demo_data` wrote.

    Attributes:
        sites: Each voice's key and its CSV file.
        counts: Each voice's key and how many reports the file holds.
        public_test: The CSV file on which everybody may test.
        public_test_count: How many reports that file holds.
        readme: The page that says where the data come from.
    """

    sites: Mapping[str, Path]
    counts: Mapping[str, int]
    public_test: Path
    public_test_count: int
    readme: Path


def reports(voice: str, count: int, seed: int) -> list[Report]:
    """Writes `count` reports with distinct texts in one institution's voice.

    A smaller count gives the beginning of a larger one.

    Args:
        voice: The key of one of `VOICES`.
        count: How many.
        seed: Same seed, same reports.

    Raises:
        ValueError: The voice is unknown or the count is negative.
    """
    return _distinct(_voice(voice), count, f"reports:{seed}", set())


def write_demo_data(folder: Path, *, records: int | None = None, seed: int = 0) -> DemoData:
    """Writes a training file per institution, one public test file and a README.

    No text of the public test set occurs in a training file.

    Args:
        folder: Where to; made if missing. Files of the same names are replaced.
        records: Reports per institution; each voice's own number when left out.
        seed: Same seed, same files.

    Raises:
        ValueError: `records` is less than one.
    """
    if records is not None and records < 1:
        raise ValueError(f"An institution needs at least one record, not {records}.")
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    sites: dict[str, Path] = {}
    counts: dict[str, int] = {}
    for voice in VOICES:
        training = _distinct(voice, records or voice.records, f"reports:{seed}", taken)
        sites[voice.key] = _write_csv(folder / f"{voice.key}.csv", training)
        counts[voice.key] = len(training)
    each = PUBLIC_TEST_RECORDS // len(VOICES)
    by_voice = [_distinct(voice, each, f"public test:{seed}", taken) for voice in VOICES]
    mixed = [report for trio in zip(*by_voice, strict=True) for report in trio]
    readme = folder / "README.txt"
    readme.write_text(_README + _contents(counts, len(mixed), seed), encoding="utf-8")
    return DemoData(
        sites=sites,
        counts=counts,
        public_test=_write_csv(folder / "public_test.csv", mixed),
        public_test_count=len(mixed),
        readme=readme,
    )


def _contents(counts: Mapping[str, int], test_count: int, seed: int) -> str:
    lines = [
        f"{voice.key}.csv: {counts[voice.key]} reports as a {voice.institution.lower()} writes them"
        for voice in VOICES
    ]
    lines.append(f"public_test.csv: {test_count} more in all three voices, none of them above")
    return "\n".join([*lines, f"seed: {seed}", ""])


def _write_csv(path: Path, rows: Sequence[Report]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows((row.text, row.label) for row in rows)
    return path


def _voice(key: str) -> Voice:
    for voice in VOICES:
        if voice.key == key:
            return voice
    known = ", ".join(voice.key for voice in VOICES)
    raise ValueError(f"There is no voice {key!r}. Known voices: {known}.")


def _distinct(voice: Voice, count: int, stream: str, taken: set[str]) -> list[Report]:
    """Draws `count` reports whose texts are not in `taken`, and adds them to it."""
    if count < 0:
        raise ValueError(f"The number of reports cannot be negative: {count}.")
    found: list[Report] = []
    for index in itertools.count():
        if len(found) == count:
            break
        report = _report(voice, Random(f"{stream}:{voice.key}:{index}"))  # noqa: S311
        if report.text not in taken:
            taken.add(report.text)
            found.append(report)
    return found


def _report(voice: Voice, rng: Random) -> Report:
    serious = rng.random() < voice.serious_share
    text = write_report(voice.key, serious=serious, rng=rng)
    mislabelled = rng.random() < voice.label_noise
    return Report(text, SERIOUS if serious != mislabelled else NOT_SERIOUS)
