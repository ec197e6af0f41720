"""Log lines: one place that says how they look, and what each is about.

(1) `configure` is called once, by whatever process serves: a site's daemon, the coordinator,
and the process of a run. (2) Text is for people, JSON lines are for collectors. (3) Libraries
speak up only when something is wrong. (4) What a line is about is set where it is known
(`about`), and stands in every JSON line written meanwhile. (5) A line names runs, rounds,
rules and files; never the text of a record.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fedpact.common.database import disk_errors
from fedpact.common.errors import UsageError

FORMAT_VARIABLE = "FEDPACT_LOG_FORMAT"
LEVEL_VARIABLE = "FEDPACT_LOG_LEVEL"
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_FORMATS = ("text", "json")
_NOISY: Final = (
    "alembic",
    "datasets",
    "filelock",
    "flwr",
    "httpcore",
    "httpx",
    "urllib3",
    "uvicorn",
)

_about: ContextVar[Mapping[str, str | int]] = ContextVar("about", default=MappingProxyType({}))


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what the line is about."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as a JSON object without line breaks."""
        line: dict[str, str | int] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(file: Path | None = None) -> None:
    """Have this process log as the environment says.

    `FEDPACT_LOG_FORMAT` is `text` (the default) or `json`; `FEDPACT_LOG_LEVEL` is a level.

    Args:
        file: where lines are added; standard error if not given.

    Raises:
        UsageError: one of the variables is something else.
        StorageError: the file cannot be written.
    """
    format_ = _chosen(FORMAT_VARIABLE, "text", _FORMATS)
    level = _chosen(LEVEL_VARIABLE, "INFO", _LEVELS)
    with disk_errors():
        handler = (
            logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
        )
    handler.setFormatter(JsonLines() if format_ == "json" else logging.Formatter(_TEXT))
    # Where a file is asked for, whatever Flower has set up before gives way to it.
    logging.basicConfig(level=level, handlers=[handler], force=file is not None)
    for library in _NOISY:
        logging.getLogger(library).setLevel(logging.WARNING)
    # What libraries tell programmers is no line of JSON, and nobody here can act on it.
    logging.captureWarnings(capture=True)
    if level != "DEBUG":
        logging.getLogger("py.warnings").setLevel(logging.ERROR)


@contextmanager
def about(**what: str | int) -> Iterator[None]:
    """Say what every line written meanwhile is about, beside what is known already.

    Args:
        what: of `study` (its digest), `run`, `round` and `site`, those that are known.
    """
    token = _about.set({**_about.get(), **what})
    try:
        yield
    finally:
        _about.reset(token)


def _chosen(variable: str, default: str, known: tuple[str, ...]) -> str:
    value = os.environ.get(variable) or default
    found = next((name for name in known if name.lower() == value.lower()), None)
    if found is None:
        raise UsageError(
            f"{variable} is {value!r}.",
            advice=f"It can be {', '.join(known[:-1])} or {known[-1]}.",
        )
    return found
