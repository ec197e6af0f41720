"""Records end to end, and batches of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.records import EncodedRecords

CPU = torch.device("cpu")
LISTS = st.lists(
    st.tuples(st.lists(st.integers(1, 30_000), min_size=1, max_size=9), st.integers(0, 4)),
    max_size=12,
)


def records_of(rows) -> EncodedRecords:
    return EncodedRecords.from_lists([ids for ids, _ in rows], [label for _, label in rows])


def rows_of(records: EncodedRecords) -> list:
    bounds = zip(records.offsets[:-1], records.offsets[1:], strict=True)
    return [
        (records.ids[start:end].tolist(), int(label))
        for (start, end), label in zip(bounds, records.labels, strict=True)
    ]


@given(rows=LISTS)
def test_records_come_back_as_they_were(rows):
    records = records_of(rows)
    assert rows_of(records) == rows
    assert len(records) == len(rows)
    assert records.lengths.tolist() == [len(ids) for ids, _ in rows]
    assert (records.ids.dtype, records.offsets.dtype) == (np.int32, np.int64)


@given(rows=LISTS.filter(len), data=st.data())
def test_some_records_are_those_in_that_order(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    records = records_of(rows).select(np.array(chosen, dtype=np.int64))
    assert rows_of(records) == [rows[i] for i in chosen]


@given(rows=LISTS.filter(len), data=st.data())
def test_a_batch_is_padded_to_its_longest_and_masked(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    batch = records_of(rows).collate(np.array(chosen), pad_id=0, device=CPU)
    longest = max(len(rows[i][0]) for i in chosen)
    width = batch["input_ids"].shape[1]
    assert longest <= width < longest + 4  # up to a multiple of four, so that shapes are few
    assert width % 4 == 0 or width == max(len(ids) for ids, _ in rows)
    assert batch["input_ids"].shape == (len(chosen), width)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    for row, index in enumerate(chosen):
        ids, label = rows[index]
        padding = width - len(ids)
        assert batch["input_ids"][row].tolist() == ids + [0] * padding
        assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * padding
        assert batch["labels"][row] == label


def test_the_padding_is_the_tokenisers():
    batch = records_of([([5], 0), ([6, 7], 1)]).collate(np.arange(2), pad_id=99, device=CPU)
    assert batch["input_ids"].tolist() == [[5, 99], [6, 7]]


@pytest.mark.parametrize("indices", [[], np.empty(0, dtype=np.int64)])
def test_a_batch_may_be_empty(indices):
    records = records_of([([5], 0)])
    batch = records.collate(np.array(indices, dtype=np.int64), pad_id=0, device=CPU)
    assert len(batch["labels"]) == 0
    assert len(records.select(np.array(indices, dtype=np.int64))) == 0
