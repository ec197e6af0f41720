"""Tables in files: CSV, JSON lines and Parquet, read whole or not at all.

Nothing is lost in silence: a line that does not fit is an error that says where it stands,
never a line that is left out. `.csv` and `.jsonl` may be gzipped.
"""

import base64
import csv
import difflib
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedpact.common.errors import DataError

if TYPE_CHECKING:
    from fedpact.common.tasks import Cell, Task

Format = Literal["csv", "jsonl", "parquet"]
_MOST_SHOWN = 10
_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
SUFFIXES = (*_FORMATS, ".csv.gz", ".jsonl.gz")


@dataclass(frozen=True, eq=False)
class Table:
    """A file's content.

    Attributes:
        sha256: of the content, before any compression by gzip.
        columns: name to values, as many in each; a value is None where there is none.
    """

    format: Format
    sha256: str
    columns: dict[str, list[Any]]

    @property
    def records(self) -> int:
        """How many there are."""
        return len(next(iter(self.columns.values()), []))

    @property
    def duplicates(self) -> int:
        """How many records equal an earlier one in every column."""
        rows = zip(*self.columns.values(), strict=True)
        return self.records - len({tuple(map(repr, row)) for row in rows})


def read(path: Path) -> Table:
    """Read a file.

    Raises:
        DataError: it is missing, unreadable, empty, or not what its suffix says; the message
            names the line where it can.
    """
    format_ = _format(path)
    data = _content(path)
    match format_:
        case "csv":
            columns = _read_csv(path, _text(path, data))
        case "jsonl":
            columns = _read_jsonl(path, _text(path, data))
        case "parquet":
            columns = _read_parquet(path, data)
    table = Table(format_, hashlib.sha256(data).hexdigest(), columns)
    if table.records == 0:
        raise DataError(f"{path} holds no records.")
    return table


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; read again only when the file has changed.

    Raises:
        DataError: the file is missing or unreadable.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _digest_of(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(path: Path, *_identity: int) -> str:
    return hashlib.sha256(_content(path)).hexdigest()


def _format(path: Path) -> Format:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    format_ = _FORMATS.get("".join(suffixes[:-1][-1:] if zipped else suffixes[-1:]))
    if format_ is None or (zipped and format_ == "parquet"):
        raise DataError(
            f"{path} is not a kind of file that can be read.",
            advice="Give .csv, .jsonl (either may end in .gz) or .parquet.",
        )
    return format_


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}.") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"There is no file {path}.")
    return DataError(f"{path} cannot be read: {error.strerror or error}.")


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: line {line} has the byte {data[error.start]:#04x}.",
            advice="Save it as UTF-8.",
        ) from error


def _read_csv(path: Path, text: str) -> dict[str, list[Any]]:
    # The limit is the process's and only guards against quotes that are never closed, which
    # `strict` finds too; texts may be long.
    csv.field_size_limit(2**31 - 1)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, [])
        if repeated := [name for name, n in Counter(header).items() if n > 1]:
            raise DataError(f"{path} has the column {repeated[0]!r} more than once.")
        rows = []
        for row in lines:
            if row and len(row) != len(header):
                raise DataError(
                    f"{path}, line {lines.line_num}: {len(row)} fields, but the header has "
                    f"{len(header)}.",
                    advice="A text with a comma or a line break must stand in double quotes.",
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: not CSV: {error}.") from error
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _read_jsonl(path: Path, text: str) -> dict[str, list[Any]]:
    rows = []
    # Not `splitlines`: it would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object.")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path, data: bytes) -> dict[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file: {error}.") from error
    if len(set(table.column_names)) != len(table.column_names):
        raise DataError(f"{path} has a column more than once.")
    return {name: table.column(name).to_pylist() for name in table.column_names}


def rows_for(
    table: Table, task: "Task", path: Path, *, public: bool = False
) -> dict[str, list[Any]]:
    """The columns of a table that a task reads: as text, or what else its `cells` says.

    Args:
        table: what `read` gave.
        task: names the columns and knows the labels.
        path: the file, for messages.
        public: whether it is a public test set, of which nobody asks whose the records are.

    Raises:
        DataError: the table lacks a column, has a record without a value, or a value that
            the study does not know.
    """
    asked = () if public or task.person_column is None else (task.person_column,)
    rows = {
        column: _cells(path, table, column, task.cells.get(column, "text"))
        for column in (*task.columns, *asked)
    }
    if unknown := task.unknown(rows):
        ordered = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{value!r} ({count})" for value, count in ordered[:_MOST_SHOWN])
        more = f" and {len(ordered) - _MOST_SHOWN} more" if len(ordered) > _MOST_SHOWN else ""
        raise DataError(f"{path} has {task.misfit[0]}: {shown}{more}.", advice=task.misfit[1])
    return rows


def nearest(name: str, known: list[str]) -> str:
    """How a sentence about an unknown name ends: with the known one most like it, if any is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _cells(path: Path, table: Table, column: str, cell: "Cell") -> list[Any]:
    if column not in table.columns:
        known = list(table.columns)
        raise DataError(
            f"{path} has no column {column!r}{nearest(column, known)}",
            advice=f"It has {', '.join(known)}.",
        )
    values = []
    for number, value in enumerate(table.columns[column], start=1):
        if cell != "maybe" and (
            value is None or (isinstance(value, str) and not value.strip())
        ):
            raise DataError(f"{path}, record {number}: there is no {column!r}.")
        try:
            values.append(_READERS[cell](value))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, record {number}: {column!r} is {error}.") from error
    return values


def _text_of(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError(f"a {type(value).__name__}, not text")
    return str(value)


def _list_of(value: Any) -> list[Any]:
    """A list as JSON lines and Parquet have it; as JSON in a CSV file."""
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise TypeError(f"a {type(found).__name__}, not a list")
    return found


def _object_of(value: Any) -> dict[str, Any]:
    """A JSON object, likewise."""
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise TypeError(f"a {type(found).__name__}, not an object")
    return found


def _bytes_of(value: Any) -> bytes:
    """A file's content: as `datasets` writes images and sounds to Parquet, or in base64.

    Not a path: what lies beside a data set would not be part of its digest.
    """
    found = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(found, str):
        found = base64.b64decode(found, validate=True)
    if not isinstance(found, bytes):
        raise TypeError(f"a {type(found).__name__}, not the bytes of a file")
    return found


_READERS: dict["Cell", Callable[[Any], Any]] = {
    "text": _text_of,
    "maybe": lambda value: "" if value is None else _text_of(value),
    "list": _list_of,
    "object": _object_of,
    "bytes": _bytes_of,
}
