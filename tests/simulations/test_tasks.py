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

ITEMS = ["drug", "dose", "day", "death"]
SIGNS = {"itch", "yawn", "sneeze", "coma", "shock", "death"}


def with_label(label_of):
    """Records of a text and what it is labelled with."""
    return lambda text, label: {
        "text": text,
        "other": "a day after",
        "label": label_of(set(text.split()), label),
    }


def with_tags(text, _):
    words = text.split()
    return {"text": words, "label": ["B-sign" if word in SIGNS else "O" for word in words]}


def with_answer(text, _):
    answer = next(word for word in text.split() if word in SIGNS)
    where = {"text": [answer], "answer_start": [text.index(answer)]}
    return {"text": "the patient had", "other": text, "label": where}


def with_image(text, label):
    """Dark or bright."""
    rng = np.random.default_rng(len(text))
    pixels = rng.integers(0, 128, (12, 20, 3)) + 127 * (label == "severe")
    Image.fromarray(pixels.astype(np.uint8)).save(sink := BytesIO(), "PNG")
    return {"image": b64encode(sink.getvalue()).decode(), "label": label}


def with_sound(text, label):
    """A low or a high note, of any length."""
    times = np.arange(640 + 20 * len(text)) / 16_000
    wave = np.sin(2 * np.pi * times * (4000 if label == "severe" else 200))
    soundfile.write(sink := BytesIO(), 0.5 * wave, 16_000, format="WAV")
    return {"audio": b64encode(sink.getvalue()).decode(), "label": label}


# Of each task (and of some in another way): what stands in [task], what a record is, and what is measured.
TASKS = {
    "text-classification": (
        {"labels": ["mild", "severe"], "text_pair_column": "other"},
        with_label(lambda words, label: label),
        {"accuracy"},
    ),
    "text-classification in windows": (
        {"labels": ["mild", "severe"], "max_windows": 3, "window_overlap": 1},
        with_label(lambda words, label: label),
        {"accuracy"},
    ),
    "multi-label-classification": (
        {"labels": ["itch", "coma", "shock"]},
        with_label(lambda words, label: "|".join(sorted({"itch", "coma", "shock"} & words))),
        {"labels_right", "micro_f1", "macro_f1"},
    ),
    "text-regression": (
        {"low": 0.0, "high": 3.0},
        with_label(lambda words, label: len(words & {"coma", "shock", "death"})),
        {"closeness", "pearson", "spearman", "rmse"},
    ),
    "token-classification": (
        {"labels": ["O", "B-sign", "I-sign"]},
        with_tags,
        {"record_f1", "precision", "recall", "entity_f1"},
    ),
    "masked-language-modelling": (
        {},
        lambda text, _: {"text": text},
        {"hidden_words_right", "perplexity"},
    ),
    "item-recommendation": (
        {"labels": ITEMS},
        # The first of four follows on the second, wherever one begins.
        lambda text, _: {
            "text": [ITEMS[(len(text) + n) % 4] for n in range(len(text) % 3 + 2)]
        },
        {"hit_rate_at_10", "ndcg_at_10"},
    ),
    "question-answering": ({"text_pair_column": "other"}, with_answer, {"f1", "exact_match"}),
    "causal-language-modelling": (
        {},
        lambda text, _: {"text": text},
        {"token_accuracy", "perplexity"},
    ),
    "sequence-to-sequence": (
        {"target_column": "label"},
        with_label(lambda words, label: "coma shock" if label == "severe" else "itch"),
        {"token_accuracy", "perplexity"},
    ),
    "image-classification": ({"labels": ["mild", "severe"]}, with_image, {"accuracy"}),
    "audio-classification": ({"labels": ["mild", "severe"]}, with_sound, {"accuracy"}),
    "audio-classification layer": ({"labels": ["mild", "severe"]}, with_sound, {"accuracy"}),
}


def write(path, record_of, records, seed):
    rows = [record_of(text, label) for text, label in some_rows(records, seed)]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("way", TASKS)
def test_a_task_is_learned_under_dp(tiny, tmp_path, way):
    section, record_of, measured = TASKS[way]
    name = way.partition(" ")[0]
    document = other_base(way, tiny).document(
        training={"rounds": 2, "local_steps": 3, "batch_size": 60, "learning_rate": 0.05},
        privacy={"target_epsilon": 100.0, "target_delta": 1e-3},
        evaluation={"data": "public.jsonl", "site_metrics": "private"},
    )
    document["task"] = {"name": name, **section}
    if "windows" in way:
        document["training"]["max_length"] = 5
    write(tmp_path / "data.jsonl", record_of, 240, 0)
    write(tmp_path / "public.jsonl", record_of, 60, 1)

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
