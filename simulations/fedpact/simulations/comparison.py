"""What a comparison compares: the grid of a study's keys, in the words of the command line.

    aggregation.method=ffa-lora,fedavg                one variant for each value
    aggregation.method:training.rounds=fedavg:10,rolora:20    two keys that change together

Values are TOML scalars or arrays; a bare word is text. Several such lines make the full grid.
"""

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fedpact.common import study_check
from fedpact.common.errors import StudyError, UsageError
from fedpact.common.study import Study

# What a comparison sets itself, and why.
_RESERVED: Final = {
    "training.seed": "--seed and --seeds set it",
    "evaluation.data": "all variants must be measured on the same data",
    "evaluation.sha256": "all variants must be measured on the same data",
}
_KEY: Final = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared.

    Attributes:
        name: what it is called in results.
        changes: keys of the study, dotted, with the value that each has here.
        sites: among how many sites, where it is not as many as the others.
        partition: how its data are dealt out, where it is not as the others' are.
        data: its data file, where it is not the others'.
        attack: what bad sites do here, as `fedpact.simulations.attacks` spells it.
    """

    name: str
    changes: Changes = field(default_factory=dict)
    sites: int | None = None
    partition: str | None = None
    data: Path | None = None
    attack: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))


def grid(axes: Iterable[str]) -> list[Changes]:
    """Every combination of the values of some axes; without axes, one that changes nothing.

    Raises:
        UsageError: an axis cannot be read, or two change the same key.
    """
    read = [_axis(axis) for axis in axes]
    keys = [key for alternatives in read for key in alternatives[0]]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"{repeated} is changed twice.")
    combinations = itertools.product(*read)
    return [{k: v for part in parts for k, v in part.items()} for parts in combinations]


def variants(axes: Sequence[str]) -> list[Variant]:
    """The variants that some axes make, each with a name of its own.

    Raises:
        UsageError: as `grid`; or two variants are the same.
    """
    changes = grid(axes)
    names = [name_of(one) for one in changes]
    if len(set(names)) < len(names):
        names = [", ".join(f"{k}={v}" for k, v in one.items()) for one in changes]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"The variant {repeated} stands there twice.")
    return [Variant(name, one) for name, one in zip(names, changes, strict=True)]


def changed(document: Mapping[str, Any], changes: Changes) -> Study:
    """A study of a file's content with some keys changed.

    Raises:
        StudyError: that is not a valid study; the message names everything that is wrong.
    """
    result: dict[str, Any] = deepcopy(dict(document))
    for key, value in changes.items():
        *tables, leaf = key.split(".")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise StudyError(f"{key} is not a key of a study.")
        place[leaf] = value
    if problems := study_check.check(result):
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise StudyError(f"{name_of(changes) or 'It'} does not make a valid study:\n{listing}")
    return Study.model_validate(result)


def _axis(text: str) -> list[dict[str, Any]]:
    """The alternatives that one axis offers."""
    names, equals, values = text.partition("=")
    keys = [name.strip() for name in names.split(":")]
    if not equals or not values.strip() or not all(map(_KEY.fullmatch, keys)):
        raise UsageError(
            f"{text!r} does not say what to compare.",
            advice="Write a study's key and its values: aggregation.method=ffa-lora,fedavg",
        )
    for key in keys:
        if key in _RESERVED:
            raise UsageError(f"{key} cannot be compared: {_RESERVED[key]}.")
    alternatives = []
    for alternative in _split(values, ","):
        parts = _split(alternative, ":")
        if len(parts) != len(keys) or not all(part.strip() for part in parts):
            raise UsageError(f"{alternative!r} does not give a value to each of {names}.")
        alternatives.append(dict(zip(keys, map(_value, parts), strict=True)))
    return alternatives


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that stands in no quotes and no brackets."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == separator and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _value(text: str) -> Any:
    """A TOML value; what is none is text."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def name_of(changes: Changes) -> str:
    """What changes are called: a word alone, anything else with its key."""
    return ", ".join(
        value if isinstance(value, str) else f"{key.rpartition('.')[2]}={value}"
        for key, value in changes.items()
    )
