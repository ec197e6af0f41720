"""Comparisons among real sites: the grid is run, once, and what came of it is told truly."""

import json
import shutil
from io import StringIO

import numpy as np
import pytest
import tomli_w
from pyarrow import parquet
from rich.console import Console

from fedpact.common import tabular
from fedpact.common.adapter import ADAPTER, Weights
from fedpact.common.database import open_database, sqlite_url
from fedpact.common.errors import StudyError, UsageError
from fedpact.server import runs
from fedpact.server.home import MIGRATIONS
from fedpact.simulations import comparison, comparison_report, held_out
from fedpact.simulations.cells import Cell, CellResult
from fedpact.simulations.simulate import Simulation, simulate
from support.comparisons import ROUNDS, SITES, prepare, run
from support.persons import person_sections, write_persons
from support.tiny_bert import LABELS, some_rows, write_data

METHODS = "aggregation.method=ffa-lora,fedavg"


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory):
    """Two methods with two seeds, in a folder that tests leave as it is."""
    study = prepare(tiny, tmp_path_factory.mktemp("compared"))
    result, said = run(study, METHODS)
    return study.parent / "compared", result, said


def test_each_variant_has_each_seed(compared):
    _, result, said = compared
    assert [v.name for v in result.variants] == ["ffa-lora", "fedavg"]
    assert [sorted(v.scores) for v in result.variants] == [[0, 1], [0, 1]]
    assert not result.failures
    assert len(said.splitlines()) == 4  # without a terminal a line for each cell


def test_a_cell_with_another_start_is_another_cell(tiny, tmp_path):
    prepare(tiny, tmp_path)
    study = tiny.study(adapter={"start": "start"}, evaluation={"data": "public.csv"})
    cell = Cell("one", study, tmp_path, tmp_path / "data.csv", "iid", SITES, 0)
    (tmp_path / "start").mkdir()
    found = set()
    for head in np.eye(3):
        Weights.from_tensors({"head": head}).save(tmp_path / "start" / ADAPTER)
        found.add(cell.identity)
    assert len(found) == 3


def test_a_cell_is_the_simulation_of_its_study_and_seed(compared, tiny, tmp_path):
    _, result, _ = compared
    study = prepare(tiny, tmp_path)
    tiny.write_study(
        study,
        training={"rounds": ROUNDS, "seed": 1},
        institutions=[],
        evaluation={"data": "public.csv"},
        aggregation={"method": "fedavg"},
    )
    alone, _ = simulate(
        Simulation(study, sites=SITES, seed=1, folder=tmp_path / "alone"),
        Console(file=StringIO()),
    )
    fedavg = result.variants[1]
    assert fedavg.scores[1] == alone.rounds[-1].accuracy
    assert fedavg.bytes_out_per_site == pytest.approx(
        sum(site.bytes_out for site in alone.sites) / SITES, rel=0.01
    )
    assert fedavg.epsilon == max(site.epsilon for site in alone.sites)


def test_the_summary_says_what_the_scores_come_to_and_for_whom_the_epsilon_is(compared):
    folder, result, _ = compared
    first, second = result.variants
    gaps = [second.scores[seed] - first.scores[seed] for seed in (0, 1)]
    assert first.gap is None
    assert second.gap.mean == pytest.approx(sum(gaps) / 2)
    assert second.gap.sd == pytest.approx(abs(gaps[0] - gaps[1]) / 2**0.5)
    assert second.score.mean == pytest.approx(sum(second.scores.values()) / 2)
    assert (first.delta, first.unit, first.neighbours) == (1e-5, "record", "add or remove one")
    assert 0.98 * 8 < first.epsilon <= 8
    assert second.bytes_out_per_site > first.bytes_out_per_site > 0
    assert first.bytes_in_per_site > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(result.model_dump_json())


def test_every_round_is_a_row(compared):
    folder, result, _ = compared
    rows = parquet.read_table(folder / "rounds.parquet").to_pylist()
    assert len(rows) == 2 * 2 * ROUNDS
    assert {(r["variant"], r["seed"]) for r in rows} == {
        (variant, seed) for variant in ("ffa-lora", "fedavg") for seed in (0, 1)
    }
    for row in rows:
        assert row["updates"] == row["sites"] == SITES
        assert 0 < row["epsilon"] <= 8
        assert (row["metric"], row["unit"]) == ("accuracy", "record")
        if row["round"] == ROUNDS:
            variant = next(v for v in result.variants if v.name == row["variant"])
            assert row["score"] == variant.scores[row["seed"]]
    assert all((r["averaging_loss"] > 0) == (r["variant"] == "fedavg") for r in rows)


def test_the_report_is_one_file_that_anybody_can_read(compared):
    folder, _, _ = compared
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<script" not in page
    assert "http" not in page
    assert 'src="data:image/png;base64,' in page
    assert page.count('<th scope="row">') == 2
    assert "<caption>" in page
    assert "ffa-lora; fedavg" in page  # what the picture shows, for who does not see it
    assert "for adding or removing one record" in page
    assert "δ = 1e-05" in page


def test_what_has_ended_is_not_run_again_and_what_was_killed_is(compared, tmp_path):
    folder, result, _ = compared
    shutil.copytree(folder.parent, tmp_path / "copy")
    cells = sorted((tmp_path / "copy" / "compared" / "cells").iterdir())
    killed = cells[0] / "cell.json"
    killed.unlink()
    (cells[0] / "fedpact.db").write_bytes(b"half a page")
    before = {cell: (cell / "fedpact.db").stat().st_mtime_ns for cell in cells[1:]}
    again, _ = run(tmp_path / "copy" / "study.toml", METHODS)
    assert killed.is_file()
    assert {cell: (cell / "fedpact.db").stat().st_mtime_ns for cell in cells[1:]} == before
    assert [v.scores for v in again.variants] == [v.scores for v in result.variants]


def test_rounds_that_are_not_measured_have_no_score_and_the_last_has_one(tiny, tmp_path):
    study = prepare(tiny, tmp_path)
    axis = "evaluation.every=1,2"
    result, _ = run(study, axis, seeds=(0,))
    often, seldom = result.variants
    assert seldom.scores == often.scores
    rows = parquet.read_table(study.parent / "compared" / "rounds.parquet").to_pylist()
    assert [r["score"] is None for r in rows] == [False, False, True, False]
    assert (study.parent / "compared" / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.e2e
def test_another_process_gives_the_same(compared, tmp_path):
    folder, result, _ = compared
    for name in ("study.toml", "data.csv", "public.csv"):
        shutil.copy(folder.parent / name, tmp_path / name)
    again, said = run(tmp_path / "study.toml", METHODS, seeds=(1,), jobs=2)
    for variant, was in zip(again.variants, result.variants, strict=True):
        assert variant.scores == {1: was.scores[1]}
    assert len(said.splitlines()) == 2


def test_a_cell_that_fails_says_why_and_the_others_go_on(tiny, tmp_path):
    study = prepare(tiny, tmp_path, training={"rounds": 1})
    result, _ = run(study, "privacy.target_delta=0.5,1e-5", seeds=(0,))
    assert [len(v.scores) for v in result.variants] == [0, 1]
    (failure,) = result.failures
    assert "one over the records of site-01" in failure.reason
    assert "Failed: target_delta=0.5, seed 0" in (
        tmp_path / "compared" / "report.html"
    ).read_text(encoding="utf-8")


def test_a_variant_without_privacy_is_called_so(tiny, tmp_path):
    study = prepare(tiny, tmp_path, training={"rounds": 1})
    result, _ = run(study, "privacy.mechanism=none,dp-sgd", seeds=(0,))
    assert [v.epsilon is None for v in result.variants] == [True, False]
    page = (tmp_path / "compared" / "report.html").read_text(encoding="utf-8")
    assert "NOT PRIVATE" in page


def test_another_of_the_tasks_measures_is_compared(tiny, tmp_path):
    task = {"name": "multi-label-classification", "labels": list(LABELS)}
    study = prepare(tiny, tmp_path, training={"rounds": 1}, task=task)
    result, _ = run(study, "study.name=mine", seeds=(0,), measure="micro_f1")
    (cell,) = (tmp_path / "compared" / "cells").iterdir()
    engine = open_database(sqlite_url(cell / "fedpact.db"), MIGRATIONS)
    (view,) = runs.list_runs(engine)
    (measured,) = runs.view(engine, view.id).rounds
    engine.dispose()
    assert result.metric == "micro f1"
    assert result.variants[0].scores == {0: measured.metrics["micro_f1"]}
    result, _ = run(study, "study.name=mine", seeds=(0,), measure="f2", folder="other")
    assert "measures micro_f1, macro_f1, not f2" in result.failures[0].reason


# Tuning


def test_values_are_chosen_on_records_held_out_and_never_by_the_test_set(tiny, tmp_path):
    """The test set has its labels the wrong way round: it would choose what learns nothing."""
    study = prepare(
        tiny,
        tmp_path,
        training={"rounds": 3, "local_steps": 10},
        privacy={"mechanism": "none"},
    )
    swapped = {LABELS[0]: LABELS[1], LABELS[1]: LABELS[0]}
    lines = [f"{text},{swapped[label]}" for text, label in some_rows(40, seed=99)]
    (tmp_path / "public.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    tried = comparison.grid(["training.learning_rate=1e-9,0.02"])
    result, said = run(study, "aggregation.method=ffa-lora", seeds=(0,), tune=tried)
    (variant,) = result.variants
    assert variant.tuning.chosen == {"training.learning_rate": 0.02}
    assert variant.tuning.tries[1].score > 0.7 > variant.tuning.tries[0].score
    assert variant.score.mean < 0.4
    assert not set(variant.tuning.seeds) & set(result.setting.seeds)
    assert "No ε above pays for the tuning" in (
        tmp_path / "compared" / "report.html"
    ).read_text(encoding="utf-8")
    assert len(said.splitlines()) == 3


def test_values_are_chosen_by_their_mean_over_seeds(tiny, tmp_path):
    study = prepare(tiny, tmp_path, privacy={"mechanism": "none"})
    tried = comparison.grid(["training.learning_rate=0.005,0.01"])
    result, _ = run(study, "aggregation.method=ffa-lora", seeds=(0,), tune=tried, tune_seeds=3)
    (variant,) = result.variants
    assert len(set(variant.tuning.seeds)) == 3
    scores = {
        values: [
            CellResult.model_validate_json(path.read_text()).score
            for seed in variant.tuning.seeds
            for path in (tmp_path / "compared").glob(f"cells/*={values}-seed{seed}-*/cell.json")
        ]
        for values in (0.005, 0.01)
    }
    assert [one.score for one in variant.tuning.tries] == [
        pytest.approx(np.mean(by_seed)) for by_seed in scores.values() if len(by_seed) == 3
    ]
    best = max(variant.tuning.tries, key=lambda one: (one.score, -one.loss))
    assert variant.tuning.chosen == best.values
    shown = StringIO()
    Console(file=shown, width=80).print(comparison_report.table(result))
    assert "…" not in shown.getvalue()  # what was chosen folds and is not cut off


def test_held_out_records_are_in_no_other_part(tmp_path, tiny):
    data = write_data(tmp_path / "data.csv", records=50)
    parts = held_out.hold_out(data, tiny.study().task, 3, tmp_path / "parts")
    whole, training, validation = (
        list(zip(*tabular.read(path).columns.values(), strict=True))
        for path in (data, parts.training, parts.validation)
    )
    assert len(validation) == 10
    assert sorted(training + validation) == sorted(whole)
    assert parts == held_out.hold_out(data, tiny.study().task, 3, tmp_path / "parts")


def test_a_person_is_in_one_part(tmp_path, tiny):
    data = write_persons(tmp_path / "data.csv", records=90, persons=30)
    task = tiny.study(**person_sections(institutions=[])).task
    parts = held_out.hold_out(data, task, 0, tmp_path / "parts")
    here, there = (
        set(tabular.read(path).columns[task.person_column])
        for path in (parts.training, parts.validation)
    )
    assert not here & there
    assert len(there) == 6


# What cannot be compared


def test_what_does_not_fit_is_said_before_anything_runs(tiny, tmp_path):
    study = prepare(tiny, tmp_path)
    with pytest.raises(StudyError, match="did you mean `method`"):
        run(study, "aggregation.methodd=fedavg")
    with pytest.raises(UsageError, match="both compared and tuned"):
        run(study, "adapter.r=1,2", tune=comparison.grid(["adapter.r=1,4"]))
    study.write_text(tomli_w.dumps(tiny.document()))
    with pytest.raises(StudyError, match="no public test set"):
        run(study, METHODS)
    assert not (tmp_path / "compared").exists()


def test_a_folder_of_something_else_is_left_alone(tiny, tmp_path):
    study = prepare(tiny, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds no comparison"):
        run(study, METHODS, folder="mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
