"""Data sets: every way a file can be wrong is one sentence, and nothing is ever left out."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedpact.client.datasets import Datasets, load_rows, require_unchanged
from fedpact.client.home import ClientHome
from fedpact.common import tasks
from fedpact.common.errors import DataError, StorageError, UsageError
from support.site_factory import a_study

TASK = tasks.for_study(a_study())
ROWS = {
    "text": ["a cold", "a, comma", 'a "quote"\nand a line'],
    "label": ["mild"] * 2 + ["severe"],
}


@pytest.fixture
def datasets(tmp_path) -> Datasets:
    return Datasets(ClientHome(tmp_path / "home").open_database())


def csv_text() -> str:
    return 'text,label\na cold,mild\n"a, comma",mild\n"a ""quote""\nand a line",severe\n'


def jsonl_text() -> str:
    rows = zip(*ROWS.values(), strict=True)
    return "".join(json.dumps(dict(zip(ROWS, row, strict=True))) + "\n" for row in rows)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_parquet(path: Path, columns: dict) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


# What can be read


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("d.csv", csv_text()),
        ("d.CSV", csv_text()),
        ("d.csv", "\ufeff" + csv_text()),
        ("d.csv", csv_text() + "\n\n"),
        ("d.csv.gz", gzip.compress(csv_text().encode(), mtime=0)),
        ("d.jsonl", jsonl_text()),
        ("d.ndjson", jsonl_text().rstrip("\n")),
        ("d.jsonl.gz", gzip.compress(jsonl_text().encode(), mtime=0)),
        ("my.data.csv", csv_text()),
    ],
)
def test_text_files_are_read_whole(datasets, tmp_path, name, data):
    dataset, warnings = datasets.add("d", write(tmp_path / name, data))
    assert warnings == []
    assert dataset.records == 3
    assert load_rows(dataset, TASK) == ROWS


def test_windows_line_ends_and_long_texts(datasets, tmp_path):
    long = "x" * 500_000
    path = write(tmp_path / "d.csv", f"text,label\r\n{long},mild\r\nshort,severe\r\n")
    dataset, _ = datasets.add("d", path)
    assert load_rows(dataset, TASK) == {"text": [long, "short"], "label": ["mild", "severe"]}


def test_a_line_separator_inside_json_is_text(datasets, tmp_path):
    row = json.dumps({"text": "one\u2028two\x85three", "label": "mild"}, ensure_ascii=False)
    dataset, _ = datasets.add("d", write(tmp_path / "d.jsonl", row + "\n"))
    assert load_rows(dataset, TASK)["text"] == ["one\u2028two\x85three"]


def test_parquet_is_read_and_numbers_become_text(datasets, tmp_path):
    task = tasks.for_study(a_study(task={"labels": ["0", "1"]}))
    path = write_parquet(
        tmp_path / "d.parquet", {"text": ["a", "b"], "label": [1, 0], "age": [7, 8]}
    )
    dataset, _ = datasets.add("d", path)
    assert load_rows(dataset, task) == {"text": ["a", "b"], "label": ["1", "0"]}


# What cannot

FILES = [
    ("gone.csv", None, "There is no file"),
    ("d.xlsx", "x", "not a kind of file"),
    ("d", "x", "not a kind of file"),
    ("d.parquet.gz", "x", "not a kind of file"),
    ("d.csv", "", "holds no records"),
    ("d.csv", "\n\n", "holds no records"),
    ("d.csv", "text,label\n", "holds no records"),
    ("d.jsonl", "\n \n", "holds no records"),
    ("d.csv", b"text,label\na,b\nf\xfcr,c\n", "line 3 has the byte 0xfc"),
    ("d.jsonl", b'{"text": "\xff"}\n', "line 1 has the byte 0xff"),
    ("d.csv", "text,label\na,b\na,b,c\n", "line 3: 3 fields, but the header has 2"),
    ("d.csv", "text,label\na,b\nc\n", "line 3: 1 fields, but the header has 2"),
    ("d.csv", 'text,label\n"a\nb",c\nd\n', "line 4: 1 fields"),
    ("d.csv", 'text,label\na,"b\nc,d\n', "line 3: not CSV"),
    ("d.csv", 'text,label\n"a"b,c\n', "line 2: not CSV"),
    ("d.csv", "text,text\na,b\n", "column 'text' more than once"),
    ("d.csv.gz", b"plain", "not a whole gzip file"),
    ("d.csv.gz", gzip.compress(csv_text().encode(), mtime=0)[:-9], "not a whole gzip file"),
    ("d.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    ("d.jsonl", '{"text": "a"}\n[1]\n', "line 2: not a JSON object"),
    ("d.jsonl", "[" * 100_000, "line 1: not JSON"),
    ("d.parquet", "PAR1 not really", "not a Parquet file"),
]


@pytest.mark.parametrize(("name", "data", "reason"), FILES)
def test_a_file_that_cannot_be_used_is_refused(datasets, tmp_path, name, data, reason):
    path = tmp_path / name
    if data is not None:
        write(path, data)
    with pytest.raises(DataError, match=reason) as caught:
        datasets.add("d", path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert datasets.list() == []


def test_a_folder_is_no_file(datasets, tmp_path):
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        datasets.add("d", tmp_path / "d.csv")


COLUMNS = [
    ("Text,label\na,mild\n", "no column 'text'; did you mean 'Text'[?] It has"),
    ("note,label\na,mild\n", "no column 'text'"),
    ("xyz,label\na,mild\n", "no column 'text'[.] It has"),
    ("text;label\na;mild\n", "no column 'text'"),
    ("text,label\na,mild\n,mild\n", "record 2: there is no 'text'"),
    ("text,label\na,mild\n  ,mild\n", "record 2: there is no 'text'"),
    ("text,label\na,\n", "record 1: there is no 'label'"),
    ("text,label\na,mild\nb,bad\nc,bad\nd,odd\n", r"does not know: 'bad' \(2\), 'odd' \(1\)"),
]


@pytest.mark.parametrize(("data", "reason"), COLUMNS)
def test_a_file_that_does_not_fit_the_study_is_refused(datasets, tmp_path, data, reason):
    dataset, _ = datasets.add("d", write(tmp_path / "d.csv", data))
    with pytest.raises(DataError, match=reason) as caught:
        load_rows(dataset, TASK)
    assert caught.value.message[-1] in ".?"
    assert "?." not in caught.value.message


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": "mild"}, "record 2: there is no 'text'"),
        ({"text": None, "label": "mild"}, "record 2: there is no 'text'"),
        ({"text": ["a", "b"], "label": "mild"}, "record 2: 'text' is a list"),
        ({"text": "a", "label": {"is": "mild"}}, "record 2: 'label' is a dict"),
    ],
)
def test_a_value_that_is_not_text_is_refused(datasets, tmp_path, row, reason):
    lines = [{"text": "fine", "label": "mild"}, row]
    path = write(tmp_path / "d.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=reason):
        load_rows(datasets.add("d", path)[0], TASK)


def test_nulls_in_parquet_are_refused(datasets, tmp_path):
    path = write_parquet(tmp_path / "d.parquet", {"text": ["a", None], "label": ["mild"] * 2})
    with pytest.raises(DataError, match="record 2: there is no 'text'"):
        load_rows(datasets.add("d", path)[0], TASK)


def test_many_unknown_labels_are_cut_short(datasets, tmp_path):
    lines = "".join(f"a,label {i}\n" for i in range(30))
    dataset, _ = datasets.add("d", write(tmp_path / "d.csv", "text,label\n" + lines))
    with pytest.raises(DataError, match="and 20 more"):
        load_rows(dataset, TASK)


# The register


def test_a_file_that_has_changed_is_another_data_set(datasets, tmp_path):
    path = write(tmp_path / "d.csv", csv_text())
    dataset, _ = datasets.add("d", path)
    require_unchanged(dataset)
    write(path, csv_text() + "one more,mild\n")
    for use in (lambda: load_rows(dataset, TASK), lambda: require_unchanged(dataset)):
        with pytest.raises(DataError, match="no longer the data set d") as caught:
            use()
        assert "dataset add d" in caught.value.advice
    again, _ = datasets.add("d", path)
    assert again.records == 4
    assert again.sha256 != dataset.sha256
    require_unchanged(again)
    path.unlink()
    with pytest.raises(DataError, match="There is no file"):
        require_unchanged(again)


def test_compression_does_not_change_what_a_data_set_is(datasets, tmp_path):
    plain, _ = datasets.add("plain", write(tmp_path / "d.csv", csv_text()))
    packed, warnings = datasets.add(
        "packed", write(tmp_path / "d.csv.gz", gzip.compress(csv_text().encode(), mtime=0))
    )
    assert plain.sha256 == packed.sha256
    assert warnings == ["It has the same content as plain, and shares its privacy budget."]


def test_duplicates_are_a_warning(datasets, tmp_path):
    path = write(tmp_path / "d.csv", "text,label\na,mild\na,mild\na,severe\na,mild\n")
    dataset, (warning,) = datasets.add("d", path)
    assert dataset.records == 4
    assert warning.startswith("2 of its 4 records repeat an earlier one")


def test_data_sets_are_found_by_name(datasets, tmp_path):
    path = write(tmp_path / "d.csv", csv_text())
    dataset, _ = datasets.add("radiology notes", path)
    assert datasets.get("radiology notes") == dataset
    assert dataset.path == path
    assert dataset.format == "csv"
    assert dataset.added_at.tzinfo is not None
    with pytest.raises(
        DataError, match=r"no data set radiology note; did you mean 'radiology notes'[?] `"
    ):
        datasets.get("radiology note")
    datasets.add("a", path)
    assert [entry.name for entry in datasets.list()] == ["a", "radiology notes"]


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 121, "\x1b[31mred"])
def test_names_that_cannot_be_used(datasets, tmp_path, name):
    with pytest.raises(UsageError):
        datasets.add(name, write(tmp_path / "d.csv", csv_text()))


def test_a_register_that_cannot_be_written_is_said(tmp_path):
    engine = ClientHome(tmp_path / "home").open_database()
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(StorageError):
        Datasets(engine).add("d", write(tmp_path / "d.csv", csv_text()))
