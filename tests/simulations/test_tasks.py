"""Every task from a data file to a result, with differential privacy on."""

import json
from io import StringIO

import numpy as np
import pytest
import tomli_w
from rich.console import Console

from fedpact.simulations.simulate import Simulation, simulate
from support.tiny_bert import some_rows
from support.tiny_others import other_base

# Of each task (and of some in another way): what stands in [task], what a record's label is, and what is measured.
TASKS = {
    "text-classification": (
        {"labels": ["mild", "severe"], "text_pair_column": "other"},
        lambda words, label: label,
        {"accuracy"},
    ),
    "text-classification in windows": (
        {"labels": ["mild", "severe"], "max_windows": 3, "window_overlap": 1},
        lambda words, label: label,
        {"accuracy"},
    ),
    "multi-label-classification": (
        {"labels": ["itch", "coma", "shock"]},
        lambda words, label: "|".join(sorted({"itch", "coma", "shock"} & words)),
        {"labels_right", "micro_f1", "macro_f1"},
    ),
    "text-regression": (
        {"low": 0.0, "high": 3.0},
        lambda words, label: len(words & {"coma", "shock", "death"}),
        {"closeness", "pearson", "spearman", "rmse"},
    ),
    "causal-language-modelling": (
        {},
        lambda words, label: label,
        {"token_accuracy", "perplexity"},
    ),
    "sequence-to-sequence": (
        {"target_column": "label"},
        lambda words, label: "coma shock" if label == "severe" else "itch",
        {"token_accuracy", "perplexity"},
    ),
}


def write(path, label_of, records, seed):
    rows = [
        {"text": text, "other": "a day after", "label": label_of(set(text.split()), label)}
        for text, label in some_rows(records, seed)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_learned_under_dp(tiny, tmp_path, name):
    section, label_of, measured = TASKS[name]
    name, _, in_windows = name.partition(" ")
    document = other_base(name, tiny).document(
        training={"rounds": 2, "local_steps": 3, "batch_size": 60, "learning_rate": 0.05},
        privacy={"target_epsilon": 100.0, "target_delta": 1e-3},
        evaluation={"data": "public.jsonl", "site_metrics": "private"},
    )
    document["task"] = {"name": name, **section}
    if in_windows:
        document["training"]["max_length"] = 5
    write(tmp_path / "data.jsonl", label_of, 240, 0)
    write(tmp_path / "public.jsonl", label_of, 60, 1)

    (tmp_path / "study.toml").write_text(tomli_w.dumps(document))
    asked = Simulation(
        study=tmp_path / "study.toml",
        data=tmp_path / "data.jsonl",
        sites=2,
        partition="dirichlet:1",
        folder=tmp_path / "run",
    )
    result, view = simulate(asked, Console(file=StringIO()))
    assert result.status == "completed"
    assert all(0 < site.epsilon <= 100 for site in result.sites)
    last = result.rounds[-1]
    assert set(last.metrics) == measured
    assert (last.accuracy is None) == (name != "text-classification")
    assert last.loss < view.study.loss_clip / 2, "no better than a guess"
    released = [answer.accuracy for answer in view.rounds[-1].answers.values()]
    assert np.isfinite(released).all()
