"""`fedpact client dataset` and `ledger`, as a steward types them."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fedpact.client import ledger_plot
from fedpact.client.dataset_cli import dataset_app, ledger
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.common import accounting
from fedpact.common.errors import DataError
from fedpact.common.mechanism import SubsampledGaussian
from support.site_factory import a_study, write_csv

app = typer.Typer()
app.add_typer(dataset_app, name="dataset")
app.command("ledger")(ledger)

STEP = SubsampledGaussian(1.0, 0.05, 2)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPACT_CLIENT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: str) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
        if result.exception:
            raise result.exception
        return result.output

    return invoke


def spend(tmp_path, *rounds: tuple[str, int], settle: bool = True) -> None:
    books = Ledger(ClientHome(tmp_path / "home").open_database())
    for name, number in rounds:
        entry = books.reserve("notes", a_study(), name, number, STEP, cap=10.0)
        if settle:
            books.settle(entry, 2)


def test_add_and_list(run, tmp_path):
    path = write_csv(tmp_path / "notes.csv", 120)
    assert "notes has 120 records" in run("dataset", "add", "notes", path)
    assert "same content as notes" in run("dataset", "add", "again", path)
    (again, notes) = json.loads(run("dataset", "list", "--format", "json"))
    assert (again["name"], notes["name"]) == ("again", "notes")
    assert (notes["records"], notes["state"], notes["path"]) == (120, "unchanged", str(path))
    write_csv(path, 121)
    assert "changed" in run("dataset", "list")
    path.unlink()
    assert "unreadable" in run("dataset", "list")


def test_a_population_is_said_and_shown(run, tmp_path):
    people = "cardiology patients 2019-2024"
    notes, letters = (write_csv(tmp_path / f"{n}.csv", 120, salt=n) for n in ("a", "b"))
    assert f"population {people}" in run(
        "dataset", "add", "notes", notes, "--population", people
    )
    spend(tmp_path, ("r1", 1))
    shown = run("dataset", "add", "letters", letters, "--population", people)
    assert "same population as notes" in shown
    assert people in run("dataset", "list")
    found = json.loads(run("ledger", "--format", "json"))["datasets"]
    assert [entry["population"] for entry in found] == [people, people]
    assert found[0]["epsilon"] == found[1]["epsilon"] > 0
    assert f"letters ({people})" in run("ledger")


def test_the_plot_rises_to_what_was_spent_under_the_cap(run, tmp_path):
    run("dataset", "add", "notes", write_csv(tmp_path / "notes.csv", 120))
    assert "nothing spent" in run("ledger", "--plot")
    assert "cap 10" not in run("ledger")
    spend(tmp_path, *(("r1", number) for number in range(1, 9)))
    lines = (
        run("ledger", "--plot")
        .partition("adding or removing one record, cap 10")[2]
        .splitlines()
    )
    cap = next(line for line in lines if line.strip().startswith("10 "))
    assert "─" * 50 in cap
    assert "█" not in cap
    below = lines[lines.index(cap) + 1 :]
    axis = next(line for line in below if "UTC" in line)
    heights = [line.count("█") for line in below[: below.index(axis)]]
    assert heights == sorted(heights), "less was spent later"
    assert heights[-1] == 60


def test_the_course_ends_with_what_was_spent(tmp_path):
    home = ClientHome(tmp_path / "home")
    Datasets(home.open_database()).add("notes", write_csv(tmp_path / "notes.csv", 120))
    spend(tmp_path, *(("r1", number) for number in range(1, 8)))
    books = Ledger(home.open_database())
    for points in (3, 60):
        found = [p.epsilon for p in ledger_plot.course(books.history("notes"), 1e-5, points)]
        assert found == sorted(found)
        assert len(found) == min(points, 7)
        assert found[-1] == books.spent("notes", 1e-5)
    books.reserve("notes", a_study(privacy={"mechanism": "none"}), "r2", 1, None, cap=10.0)
    assert ledger_plot.course(books.history("notes"), 1e-5)[-1].epsilon == float("inf")


def test_adding_new_content_forgets_the_cached_old(run, tmp_path):
    path = write_csv(tmp_path / "notes.csv", 120)
    run("dataset", "add", "notes", path)
    home = ClientHome(tmp_path / "home")
    (kept,) = Datasets(home.open_database()).list()
    old = home.cache / f"{kept.sha256}-0.arrow"
    old.write_bytes(b"")
    run("dataset", "add", "notes", path)
    assert old.exists()
    run("dataset", "add", "notes", write_csv(path, 121))
    assert not old.exists()


def test_check(run, tmp_path):
    path = write_csv(tmp_path / "notes.csv", 120)
    run("dataset", "add", "notes", path)
    assert "notes is unchanged." in run("dataset", "check", "notes")
    study = tmp_path / "study.toml"
    study.write_text('study.name = "x"\nmodel.base = "y"\ntask.labels = ["mild", "severe"]\n')
    assert "fits the study" in run("dataset", "check", "notes", "--study", study)
    study.write_text('study.name = "x"\nmodel.base = "y"\ntask.labels = ["mild", "bad"]\n')
    with pytest.raises(DataError, match=r"'severe' \(60\)"):
        run("dataset", "check", "notes", "--study", study)
    write_csv(path, 119)
    with pytest.raises(DataError, match="no longer the data set"):
        run("dataset", "check", "notes")
    with pytest.raises(DataError, match="did you mean 'notes'"):
        run("dataset", "check", "note")


def test_the_ledger_as_json(run, tmp_path):
    run("dataset", "add", "notes", write_csv(tmp_path / "notes.csv", 120))
    spend(tmp_path, ("r1", 1), ("r1", 2))
    spend(tmp_path, ("r2", 1), settle=False)
    shown = json.loads(run("ledger", "--format", "json"))
    assert (shown["datasets"][0]["unit"], shown["datasets"][0]["neighbours"]) == (
        "record",
        "add or remove one record",
    )
    (notes,) = shown["datasets"]
    assert notes["epsilon"] == accounting.epsilon([STEP] * 3, 1e-5)
    assert notes["remaining"] == 10.0 - notes["epsilon"]
    assert notes["delta"] == 1e-5
    first, second = notes["runs"]
    assert (first["run"], first["rounds"], first["steps"], first["unsettled"]) == (
        "r1",
        2,
        4,
        0,
    )
    assert first["epsilon"] == accounting.epsilon([STEP] * 2, 1e-5)
    assert first["study"] == "triage"
    assert (second["run"], second["rounds"], second["unsettled"]) == ("r2", 1, 1)


def test_the_ledger_as_a_table(run, tmp_path):
    run("dataset", "add", "notes", write_csv(tmp_path / "notes.csv", 120))
    empty = run("ledger")
    assert "10 of 10" in empty
    assert "0.0001" in empty
    spend(tmp_path, ("r1", 1), settle=False)
    shown = run("ledger", "notes")
    assert "triage" in shown
    assert "1 (1 open)" in shown
    assert f"{accounting.epsilon([STEP], 1e-5):.4g}" in shown
    assert "protects one record" in shown


def test_what_was_not_private_is_shown_as_infinite(run, tmp_path):
    run("dataset", "add", "notes", write_csv(tmp_path / "notes.csv", 120))
    books = Ledger(ClientHome(tmp_path / "home").open_database())
    books.reserve("notes", a_study(privacy={"mechanism": "none"}), "r1", 1, None, cap=10.0)
    assert "inf" in run("ledger")
    (notes,) = json.loads(run("ledger", "--format", "json"))["datasets"]
    assert (notes["epsilon"], notes["remaining"], notes["runs"][0]["epsilon"]) == (
        None,
        0.0,
        None,
    )
