"""Every task from a data file to a result, with differential privacy on."""

import json
from base64 import b64encode
from io import BytesIO, StringIO

import numpy as np
import pytest
import soundfile
import tomli_w
from PIL import Image
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
    "image-classification": (
        {"labels": ["mild", "severe"]},
        lambda words, label: label,
        {"accuracy"},
    ),
    "audio-classification": (
        {"labels": ["mild", "severe"]},
        lambda words, label: label,
        {"accuracy"},
    ),
    "audio-classification layer": (
        {"labels": ["mild", "severe"]},
        lambda words, label: label,
        {"accuracy"},
    ),
}


def an_image(label, rng):
    """Dark or bright."""
    pixels = rng.integers(0, 128, (12, 20, 3)) + 127 * (label == "severe")
    Image.fromarray(pixels.astype(np.uint8)).save(sink := BytesIO(), "PNG")
    return b64encode(sink.getvalue()).decode()


def a_sound(label, rng):
    """A low or a high note, of any length."""
    times = np.arange(rng.integers(640, 1600)) / 16_000
    wave = np.sin(2 * np.pi * times * (4000 if label == "severe" else 200))
    soundfile.write(sink := BytesIO(), 0.5 * wave, 16_000, format="WAV")
    return b64encode(sink.getvalue()).decode()


def write(path, name, label_of, records, seed):
    rng = np.random.default_rng(seed)
    if name.startswith(("image", "audio")):
        column, make = ("image", an_image) if name.startswith("image") else ("audio", a_sound)
        rows = [
            {column: make(label, rng), "label": label} for _, label in some_rows(records, seed)
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
        return
    rows = [
        {"text": text, "other": "a day after", "label": label_of(set(text.split()), label)}
        for text, label in some_rows(records, seed)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("way", TASKS)
def test_a_task_is_learned_under_dp(tiny, tmp_path, way):
    section, label_of, measured = TASKS[way]
    name = way.partition(" ")[0]
    document = other_base(way, tiny).document(
        training={"rounds": 2, "local_steps": 3, "batch_size": 60, "learning_rate": 0.05},
        privacy={"target_epsilon": 100.0, "target_delta": 1e-3},
        evaluation={"data": "public.jsonl", "site_metrics": "private"},
    )
    document["task"] = {"name": name, **section}
    if "windows" in way:
        document["training"]["max_length"] = 5
    write(tmp_path / "data.jsonl", name, label_of, 240, 0)
    write(tmp_path / "public.jsonl", name, label_of, 60, 1)

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
    pipeline = view.study.task.kind.pipeline
    assert any(
        f"pipeline_tag: {pipeline}" in card.read_text()
        for card in tmp_path.glob("run/**/README.md")
    )
    last = result.rounds[-1]
    assert set(last.metrics) == measured
    assert (last.accuracy is None) == ("accuracy" not in measured)
    assert last.loss < view.study.loss_clip / 2, "no better than a guess"
    released = [answer.accuracy for answer in view.rounds[-1].answers.values()]
    assert np.isfinite(released).all()
