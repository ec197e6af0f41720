"""Tokenised records: made once, mapped after, and never older than the file."""

import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedpact.client import record_cache
from fedpact.client.home import ClientHome
from fedpact.client.record_cache import encode, forget_all_but, tokenizer_digest
from fedpact.common import tasks
from fedpact.common.errors import DataError, StorageError
from fedpact.common.records import Column, EncodedRecords
from support.site_factory import a_home, a_study, write_csv

STUDY = a_study()


def a_tokenizer(words: int = 200) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    numbers = [f"patient{i}" for i in range(words)] + ["patient", *map(str, range(words))]
    vocabulary = {word: number for number, word in enumerate(special + numbers)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )


def same(left: EncodedRecords, right: EncodedRecords) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        and getattr(left, name).dtype == getattr(right, name).dtype
        for name in ("ids", "offsets", "labels")
    )


@pytest.fixture(autouse=True)
def _as_after_a_restart():
    record_cache._read.cache_clear()


@pytest.fixture
def tokenizer():
    return a_tokenizer()


@pytest.fixture
def site(tmp_path):
    return a_home(tmp_path)


def plainly(dataset, study, tokenizer) -> EncodedRecords:
    task = tasks.for_study(study)
    from fedpact.client.datasets import load_rows

    return task.encode(tokenizer, load_rows(dataset, task), study.training.max_length)


def cached(home: ClientHome) -> list[Path]:
    return sorted(home.cache.glob("*.arrow"))


def never(*_: object) -> Mapping[str, object]:
    raise AssertionError("the records were encoded again")


def test_records_are_encoded_once(site, tokenizer, monkeypatch):
    home, _, dataset = site
    first = encode(home, dataset, STUDY, tokenizer)
    assert len(first) == 120
    assert same(first, plainly(dataset, STUDY, tokenizer))
    (path,) = cached(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr(record_cache, "load_rows", never)
    record_cache._read.cache_clear()
    assert same(encode(home, dataset, STUDY, tokenizer), first)


def test_they_are_mapped_and_cannot_be_written(site, tokenizer):
    home, _, dataset = site
    encode(home, dataset, STUDY, tokenizer)
    records = encode(home, dataset, STUDY, tokenizer)
    for array in (records.ids, records.offsets, records.labels):
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert encode(home, dataset, STUDY, tokenizer) is records


def test_targets_of_many_numbers_and_columns_of_any_kind_are_kept(site, tokenizer):
    home, _, dataset = site
    study = a_study(task={"name": "multi-label-classification"})
    assert same(encode(home, dataset, study, tokenizer), plainly(dataset, study, tokenizer))
    assert encode(home, dataset, study, tokenizer).labels.shape == (120, 2)
    sounds = EncodedRecords(
        {
            "input_values": Column.of_rows([[0.5], [0.25, 1.0]], np.float32),
            "pixels": Column(np.arange(8, dtype=np.uint8).reshape(2, 2, 2)),
            "labels": Column.of_rows([[1, 2], [3]], np.int64, pad=-100),
        },
        values_per_token=320,
    )
    path = home.cache / "sounds.arrow"
    path.write_bytes(record_cache._to_bytes(sounds))
    found = record_cache._cached(path)
    assert (found.values_per_token, list(found.columns)) == (320, list(sounds.columns))
    for name, column in sounds.columns.items():
        assert found.columns[name].pad == column.pad
        for index in range(2):
            np.testing.assert_array_equal(found.columns[name].of(index), column.of(index))
    batch = found.collate(np.arange(2), pad_id=0, device=torch.device("cpu"))
    assert batch["labels"].tolist() == [[1, 2], [3, -100]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["pixels"].dtype == torch.int64


def test_what_decides_the_encoding_decides_the_file(site, tokenizer):
    home, _, dataset = site
    studies = [
        STUDY,
        a_study(training={"max_length": 4}),
        a_study(task={"labels": ["severe", "mild"]}),
    ]
    for study in studies:
        records = encode(home, dataset, study, tokenizer)
        assert same(records, plainly(dataset, study, tokenizer))
    encode(home, dataset, STUDY, a_tokenizer(words=50))
    assert len(cached(home)) == 4
    # What does not, does not.
    encode(home, dataset, a_study(privacy={"target_epsilon": 1.0}), tokenizer)
    assert len(cached(home)) == 4


def test_a_tokenizer_is_known_by_what_it_does_not_by_its_last_call():
    tokenizer = a_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer(["patient 1"], truncation=True, max_length=7, padding=True)
    tokenizer_digest.cache_clear()
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(a_tokenizer(words=50)) != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"x" * len(data),
        lambda data: data[:1500] + bytes([data[1500] ^ 1]) + data[1501:],
    ],
)
def test_a_damaged_file_is_made_anew(site, tokenizer, damage):
    home, _, dataset = site
    first = encode(home, dataset, STUDY, tokenizer)
    expected = plainly(dataset, STUDY, tokenizer)
    assert same(first, expected)
    (path,) = cached(home)
    data = path.read_bytes()
    path.unlink()  # what is mapped stays as it was
    path.write_bytes(damage(data))
    assert same(encode(home, dataset, STUDY, tokenizer), expected)
    record_cache._read.cache_clear()
    assert path.read_bytes() == data


def test_a_record_that_was_taken_out_is_not_found_in_the_cache(site, tokenizer):
    home, datasets, dataset = site
    encode(home, dataset, STUDY, tokenizer)
    write_csv(dataset.path, 119)
    with pytest.raises(DataError, match="no longer the data set"):
        encode(home, dataset, STUDY, tokenizer)
    shorter, _ = datasets.add("notes", dataset.path)
    assert len(encode(home, shorter, STUDY, tokenizer)) == 119
    assert len(cached(home)) == 2
    forget_all_but(home, datasets.list())
    (path,) = cached(home)
    assert path.name.startswith(shorter.sha256)


def test_without_room_for_a_cache_records_are_used_all_the_same(site, tokenizer, monkeypatch):
    home, _, dataset = site

    def full(*_: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(record_cache, "write_private", full)
    assert len(encode(home, dataset, STUDY, tokenizer)) == 120
    assert cached(home) == []
