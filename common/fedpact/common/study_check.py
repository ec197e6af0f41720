"""Everything that is wrong with a study file, at once, each with its line.

pydantic finds what is wrong; TOML's reader keeps no line numbers, so they are looked up in
the text by table and key.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedpact.common.errors import StudyError
from fedpact.common.study import Study

_TABLE = re.compile(r"^\s*\[{1,2}\s*([A-Za-z0-9_.-]+)\s*\]{1,2}")
_KEY = re.compile(r"^\s*([A-Za-z0-9_-]+)\s*=")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the line (from 1, 0 for the file as a whole), the key, why."""

    line: int
    key: str
    why: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.key}: {self.why}" if self.key else f"{place}{self.why}"


def read(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Read a study file and check it.

    Returns:
        the document as TOML gives it, and what is wrong with it (empty: nothing).

    Raises:
        StudyError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StudyError(
            f"There is no study file {path}.", advice="`fedpact study new` writes one."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"The study file {path} cannot be read: {error}.") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        return {}, [Problem(int(line.group(1)) if line else 0, "", f"not TOML: {error}")]
    return document, check(document, text)


def check(document: dict[str, Any], text: str = "") -> list[Problem]:
    """What is wrong with a study document, in the order of its lines."""
    try:
        Study.model_validate(document)
    except ValidationError as error:
        lines = _lines(text)
        problems = [_problem(dict(found), lines) for found in error.errors()]
        return sorted(problems, key=lambda problem: (problem.line, problem.key))
    return []


def _problem(found: dict[str, Any], lines: dict[tuple[str | int, ...], int]) -> Problem:
    location = tuple(part for part in found["loc"] if part != "__root__")
    line = next(
        (lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), 0
    )
    why = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        why = "there is no such key" + _nearest(location)
    elif found["type"] == "missing":
        why = "is missing"
    elif found["type"].startswith(("literal", "enum")):
        why = f"{why}, not {found['input']!r}"
    return Problem(line, ".".join(str(part) for part in location), why)


def _nearest(location: tuple[str | int, ...]) -> str:
    """Name the known key that is most like an unknown one."""
    section: type[BaseModel] = Study
    for part in location[:-1]:
        if isinstance(part, str):
            section = _section_of(section, part)
    known = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(known)}"


def _section_of(parent: type[BaseModel], name: str) -> type[BaseModel]:
    annotation = parent.model_fields[name].annotation
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))


def _lines(text: str) -> dict[tuple[str | int, ...], int]:
    """Where each table and key stands, by its path in the document."""
    lines: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            name = header.group(1)
            table = tuple(name.split("."))
            if line.strip().startswith("[["):
                counts[name] = counts.get(name, -1) + 1
                table = (*table, counts[name])
            lines.setdefault(table[:1], number)
            lines[table] = number
        elif key := _KEY.match(line):
            lines[(*table, key.group(1))] = number
    return lines
