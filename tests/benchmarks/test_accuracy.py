"""The rows of the accuracy table: valid studies, equal budgets, and figures that are computed right."""

import csv
import gzip
from dataclasses import replace
from io import StringIO
from itertools import cycle

import numpy as np
import pytest
import tomli_w
from rich.console import Console

import _study
from _figures import at_least, best_beyond_spread, borne, not_below, within
from _rows import ROWS, RULES, Data
from _site_figures import (
    ALONE,
    SHARED,
    Had,
    joining_is_worth_it,
    personal_matches_alone,
    shared_beats_alone,
)
from _sites import plan, run, scores_of
from _start import train_start
from _study import prepare, study_of
from fedpact.common import study, study_check, tabular
from fedpact.common.adapter import Weights
from fedpact.simulations import comparison
from fedpact.simulations.cells import Cell
from support.tiny_bert import LABELS, some_rows, write_data

SITES = ("Nord", "Ost")


# Rows


def labels_for(row):
    """Some labels that the row's task can have."""
    return {"question-answering": [], "token-classification": ["O", "B-x", "I-x"]}.get(
        row.data.task.get("name"), ["a", "b"]
    )


@pytest.mark.parametrize("name", ROWS)
def test_each_variant_of_a_row_is_a_valid_study(name):
    row = ROWS[name]
    document = study_of(row, name, labels_for(row), batch=10)
    values = [{"training.learning_rate": rate} for rate in row.recipe.rates] or [{}]
    assert len({variant.name for variant in row.variants}) == len(row.variants)
    for variant in row.variants:
        made = comparison.changed(document, {**variant.changes, **values[0]})
        assert made.is_private == (row.epsilon is not None)
    assert bool(row.rules) != bool(row.site_rules)
    assert not row.tune or len(values) > 1


@pytest.mark.parametrize("name", ROWS)
def test_each_rule_has_its_figure_once_all_is_measured(name):
    row = ROWS[name]
    scores = {variant.name: {0: 0.9, 1: 0.8} for variant in row.variants}
    assert all(rule(scores) for rule in row.rules)
    assert not any(rule({}) for rule in row.rules)


def write_sst2(folder, records):
    folder.mkdir()
    for part in ("train", "test"):
        text = StringIO()
        writer = csv.writer(text)
        writer.writerow(["text", "label"])
        writer.writerows(zip(map(str, range(records)), cycle(LABELS), strict=False))
        (folder / f"{part}.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    return folder


def test_central_has_as_many_steps_and_records_in_each_as_all_sites_together(tmp_path):
    row = ROWS["federated-dp"]
    files = prepare(row, write_sst2(tmp_path / "sst2", 101), tmp_path / "row", 100, None)
    federated, central = (files.with_batch(variant) for variant in row.variants)
    document, _ = study_check.read(files.study)
    made = [comparison.changed(document, v.changes) for v in (federated, central)]
    assert tabular.read(files.training).records == 100
    assert made[0].training.batch_size == 10  # 0.3 of 33
    assert made[1].training.batch_size == 3 * 10
    assert made[0].total_steps == made[1].total_steps


def test_the_same_row_is_written_the_same_so_that_it_goes_on(tmp_path):
    row = ROWS["federated-dp"]
    source = write_sst2(tmp_path / "sst2", 50)
    files = prepare(row, source, tmp_path / "row", None, None)
    before = [f.read_bytes() for f in (files.study, files.training, files.test)]
    again = prepare(row, source, tmp_path / "row", None, None)
    assert again == files
    assert [f.read_bytes() for f in (again.study, again.training, again.test)] == before
    assert study.load(files.study).privacy.target_epsilon == 8


def test_a_start_is_trained_once_on_public_data_and_without_noise(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(_study, "BASE", str(tiny.folder))
    recipe = replace(ROWS["public-start"].recipe, rounds=2, adapter={"r": 2}, training={})
    row = replace(
        ROWS["public-start"], recipe=recipe, start=(Data("sst2", 12, suffix=".csv"), recipe)
    )
    (tmp_path / "sst2").mkdir()
    write_data(tmp_path / "sst2" / "train.csv", records=40)
    train_start(row, tmp_path, tmp_path / "row")
    made = tmp_path / "row" / "start" / "adapter_model.safetensors"
    before = made.stat()
    assert np.abs(Weights.load(made).flat).max() > 0
    assert not study.load(tmp_path / "row" / "start.toml").is_private
    train_start(row, tmp_path, tmp_path / "row")
    assert made.stat() == before


# Figures


def test_within_is_of_the_means_in_both_directions():
    scores = {"a": {0: 0.80, 1: 0.90}, "b": {0: 0.81, 1: 0.88, 2: 0.1}}
    (figure,) = within("a", "b", 0.5)(scores)
    assert figure.value == pytest.approx(0.5)  # the mean of -1 and 2; b alone has seed 2
    assert figure.sd == pytest.approx(3 / 2**0.5)
    for shifted, met in ((0.004, True), (-0.004, True), (0.006, False), (-0.006, False)):
        (figure,) = within("a", "b", 0.5)({"a": {0: 0.5 + shifted}, "b": {0: 0.5}})
        assert figure.met is met
    (figure,) = not_below("a", "b", 0.5)({"a": {0: 0.9}, "b": {0: 0.5}})
    assert figure.met
    (figure,) = not_below("a", "b", 0.5)({"a": {0: 0.5}, "b": {0: 0.506}})
    assert not figure.met


def test_a_mean_is_held_to_its_percent():
    assert at_least("a", 83)({"a": {0: 0.82, 1: 0.84}})[0].met
    assert not at_least("a", 83)({"a": {0: 0.82, 1: 0.83}})[0].met


def test_the_best_is_above_the_reference_only_beyond_the_spread_of_the_gap():
    steady = {"plain": {0: 0.5, 1: 0.6}, "x": {0: 0.52, 1: 0.63}, "y": {0: 0.1, 1: 0.1}}
    figure, low, high = best_beyond_spread("plain")(steady)
    assert figure.what.startswith("x, the best, less plain")
    assert figure.value == pytest.approx(2.5)
    assert figure.met
    # Student's t for one degree of freedom is 12.706, and the deviation of 2 and 3 over √2 a half.
    assert (low.value, high.value) == pytest.approx((2.5 - 6.353, 2.5 + 6.353), abs=1e-3)
    unsteady = {"plain": {0: 0.5, 1: 0.6}, "x": {0: 0.60, 1: 0.55}}
    assert not best_beyond_spread("plain")(unsteady)[0].met
    alone = {"plain": {0: 0.5}, "x": {0: 0.9}}  # one seed has no spread to be beyond
    assert not best_beyond_spread("plain")(alone)[0].met


def test_of_each_attack_the_best_rule_is_held_to_plain_averaging_without_any():
    scores = {
        "mean, all honest": {0: 0.90},
        "mean, noise": {0: 0.50},
        "median, noise": {0: 0.89},
        "mean, little": {0: 0.80},
        "median, little": {0: 0.70},
    }
    figures = borne(("mean", "median"), ("noise", "little"), "mean, all honest", 2.0)(scores)
    values = {figure.what: figure.value for figure in figures}
    assert values == pytest.approx(
        {
            "little: points that mean, the best, is below mean, all honest": 10,
            "noise: points that median, the best, is below mean, all honest": 1,
            "noise: points that mean is below mean, all honest": 40,
            "little: points that mean is below mean, all honest": 10,
        }
    )
    assert [figure.met for figure in figures] == [False, True, None, None]
    assert RULES[0] == "mean"


def had(own, whole):
    return {
        (site, seed): Had(own=o, whole=w)
        for seed in (0, 1)
        for site, o, w in zip(SITES, own, whole, strict=True)
    }


def test_losers_are_named_and_the_gain_is_on_the_whole_test_set():
    scores = {ALONE: had((0.9, 0.5), (0.6, 0.7)), SHARED: had((0.8, 0.6), (0.75, 0.65))}
    gain, won = shared_beats_alone(scores)
    assert gain.value == pytest.approx((15 - 5) / 2)
    assert (won.value, won.met) == (1, False)
    assert "(not Ost)" in won.what
    gain, won = joining_is_worth_it(scores)
    assert (gain.value, gain.met) == (pytest.approx((15 - 5) / 2), True)
    assert (won.value, won.met) == (1, None)
    assert "(not Ost)" in won.what
    worse = {ALONE: scores[SHARED], SHARED: scores[ALONE]}
    assert not joining_is_worth_it(worse)[0].met
    assert joining_is_worth_it({ALONE: scores[ALONE]}) == []


def test_a_personal_adapter_is_held_to_alone_on_the_sites_own_records():
    none = (None, None)
    scores = {
        ALONE: had((0.9, 0.5), (0.6, 0.7)),
        SHARED: had((0.8, 0.6), (0.75, 0.65)),
        "ditto": had((0.8, 0.6), none),
        "fine-tune": had((0.9, 0.5), none),
    }
    best, other, shared = personal_matches_alone(0)(scores)
    assert "fine-tune" in best.what
    assert (best.value, best.met) == (2, True)
    assert (other.value, other.met) == (1, False)
    assert "(not Nord)" in other.what
    assert (shared.value, shared.target) == (1, "")
    assert all(f.met for f in personal_matches_alone(1)(scores) if f.target)


# Every site


def write(path, rows):
    lines = ["text,label,site", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def contrary(rows):
    """The same texts with the other label: what one site learns is wrong at the other."""
    return [(text, LABELS[1 - LABELS.index(label)]) for text, label in rows]


@pytest.fixture
def cells(tiny, tmp_path):
    """Federations of two sites that see the same words with opposite labels; the larger one wins."""
    at = {"Nord": some_rows(200), "Ost": contrary(some_rows(60, 1))}
    data = write(tmp_path / "data.csv", [(*r, s) for s in SITES for r in at[s]])
    tests = {"Nord": some_rows(40, 2), "Ost": contrary(some_rows(40, 3))}
    write(tmp_path / "test.csv", [(*r, s) for s in SITES for r in tests[s]])
    document = tiny.document(
        training={"rounds": 5, "local_steps": 15},
        privacy={"target_epsilon": 200.0, "target_delta": 1e-3},
        aggregation={"method": "fedavg"},
        institutions=[],
        evaluation={"data": "test.csv"},
    )
    (tmp_path / "study.toml").write_text(tomli_w.dumps(document))
    changes = {
        "fine-tune": {"personalisation.method": "fine-tune", "personalisation.steps": 60},
        "private-head": {"personalisation.method": "private-head"},
    }
    return [
        Cell(name, comparison.changed(document, change), tmp_path, data, "column:site", None, 0)
        for name, change in changes.items()
    ]


def test_sites_are_measured_alone_shared_and_personal_and_only_once(cells, tmp_path):
    said = StringIO()
    parts = plan(cells, tmp_path / "parts", tmp_path / "alone")
    results, failures = run(parts, 1, Console(file=said))
    assert not failures
    scores = scores_of(parts, results)
    assert set(scores) == {ALONE, SHARED, "fine-tune", "private-head"}
    alone, shared, tuned = (
        {site: scores[way][site, 0] for site in SITES} for way in (ALONE, SHARED, "fine-tune")
    )
    assert alone["Ost"].own > 0.8
    assert alone["Ost"].whole < 0.7
    assert shared["Ost"].own < 0.5 < shared["Nord"].own
    assert shared["Ost"].whole == shared["Nord"].whole
    assert shared["Ost"].whole == pytest.approx((shared["Ost"].own + shared["Nord"].own) / 2)
    assert tuned["Ost"].own > 0.8
    # Alone is without DP, whatever the federation is.
    epsilons = {part.name: result.epsilon for part, result in zip(parts, results, strict=True)}
    assert epsilons["Ost alone, seed 0"] is None
    assert 0 < epsilons["fine-tune, seed 0"] <= 200
    # Of what was run only the results stay, and they are not run again.
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert len(list((tmp_path / "alone").iterdir())) == 2
    again, _ = run(parts, 1, Console(file=said))
    assert again == results
    assert "4 of 4 parts are there already" in said.getvalue()
