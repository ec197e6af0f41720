"""Tokenised records, kept between rounds and restarts, and mapped into memory when read.

One Arrow file for each way to encode a data set, named by all that decides its content: the
data set's own content, tokeniser, columns, labels, length. It is written whole or not at all
and carries a SHA-256 of its arrays; a file that is damaged is made anew from the data set.
A data set whose file has changed or is gone is not used from here either: whoever takes a
record out of the file must not find it in training.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedpact.client.datasets import Dataset, load_rows, require_unchanged
from fedpact.client.home import ClientHome
from fedpact.common import tasks
from fedpact.common.errors import StorageError
from fedpact.common.private_files import write_private
from fedpact.common.records import Column, EncodedRecords, IntArray
from fedpact.common.study import Study

log = logging.getLogger(__name__)

_LAYOUT = 4
_DIGEST, _SHAPE = b"fedpact_sha256", b"fedpact_shape"
_PERSONS = " persons"  # no model calls an input so


def encode(home: ClientHome, dataset: Dataset, study: Study, tokenizer: Any) -> EncodedRecords:
    """The records of a data set as the study's model reads them.

    Raises:
        DataError: the data set does not fit the study, or has changed.
    """
    require_unchanged(dataset)
    path = home.cache / f"{dataset.sha256}-{_key(dataset, study, tokenizer)}.arrow"
    if (cached := _cached(path)) is not None:
        return cached
    task = tasks.for_study(study)
    records = task.encode(tokenizer, load_rows(dataset, task), study.training.max_length)
    try:
        write_private(path, _to_bytes(records))
    except StorageError as error:
        # Training does not need the cache: it only starts slower the next time.
        log.warning("tokenised records are not kept: %s", error)
        return records
    return _cached(path) or records


def forget_all_but(home: ClientHome, datasets: Iterable[Dataset]) -> None:
    """Remove the cached records of every other content.

    Raises:
        OSError: one cannot be removed.
    """
    known = {dataset.sha256 for dataset in datasets}
    for path in home.cache.glob("*.arrow"):
        if path.name.partition("-")[0] not in known:
            path.unlink(missing_ok=True)


@lru_cache(maxsize=4)  # a round must not pay for it again
def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what decides how a tokeniser encodes, in hexadecimal."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Left over from the last call, not part of what the tokeniser is.
        state["truncation"] = state["padding"] = None
    elif hasattr(tokenizer, "get_vocab"):
        state = tokenizer.get_vocab()
    else:  # an image processor or feature extractor
        state = tokenizer.to_dict()
    named = [type(tokenizer).__name__, getattr(tokenizer, "truncation_side", None), state]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _key(dataset: Dataset, study: Study, tokenizer: Any) -> str:
    parts = [
        _LAYOUT,
        dataset.format,  # the same bytes are other rows in another format
        tokenizer_digest(tokenizer),
        study.task.model_dump(mode="json"),
        study.training.max_length,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(records: EncodedRecords) -> bytes:
    content = hashlib.sha256()
    for column in records.columns.values():
        for array in (column.values, column.offsets):
            if array is not None and array.size:
                content.update(np.ascontiguousarray(array).data)
    if records.persons is not None and len(records.persons):
        content.update(np.ascontiguousarray(records.persons).data)
    content.update(_shape(records))
    return content.hexdigest().encode()


def _shape(records: EncodedRecords) -> bytes:
    """What the arrays alone do not tell."""
    columns = {
        name: {"pad": column.pad, "shape": column.values.shape[1:]}
        for name, column in records.columns.items()
    }
    shape = {
        "columns": columns,
        "values_per_token": records.values_per_token,
        "window": records.window,
    }
    return json.dumps(shape).encode()


def _to_bytes(records: EncodedRecords) -> bytes:
    import pyarrow as pa

    columns = {name: _to_arrow(column) for name, column in records.columns.items()}
    if records.persons is not None:
        columns[_PERSONS] = pa.array(records.persons)
    table = pa.table(columns)
    table = table.replace_schema_metadata({_DIGEST: _digest(records), _SHAPE: _shape(records)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _to_arrow(column: Column) -> Any:
    import pyarrow as pa

    values = pa.array(column.values.reshape(-1))
    if column.offsets is not None:
        return pa.LargeListArray.from_arrays(pa.array(column.offsets), values)
    if column.values.ndim == 1:
        return values
    return pa.FixedSizeListArray.from_arrays(values, int(np.prod(column.values.shape[1:])))


def _from_arrow(array: Any, shape: Sequence[int], pad: float) -> Column:
    import pyarrow as pa

    if pa.types.is_large_list(array.type):
        return Column(array.values.to_numpy(), array.offsets.to_numpy(), pad)
    flat = array.values if shape else array
    return Column(flat.to_numpy().reshape(-1, *shape) if shape else flat.to_numpy(), pad=pad)


def _cached(path: Path) -> EncodedRecords | None:
    """Cached records, mapped; None if there are none or they are damaged."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _read(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)  # mapped, so they hold little; each is checked once while it stays
def _read(path: Path, *_identity: int) -> EncodedRecords | None:
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        shape = json.loads(table.schema.metadata[_SHAPE])
        columns = {
            name: _from_arrow(table.column(name).chunk(0), **how)
            for name, how in shape["columns"].items()
        }
        persons, window = _persons(table), shape["window"]
        records = EncodedRecords(columns, persons, shape["values_per_token"], window)
        damaged = table.schema.metadata.get(_DIGEST) != _digest(records)
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        IndexError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:
        log.debug("%s: %s", path, error)
        damaged = True
    if damaged:
        log.warning("the cached records %s are damaged: they are made anew", path.name)
        return None
    return records


def _persons(table: Any) -> IntArray | None:
    if _PERSONS not in table.column_names:
        return None
    numbers: IntArray = table.column(_PERSONS).chunk(0).to_numpy()
    return numbers
