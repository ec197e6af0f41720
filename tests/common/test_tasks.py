"""Every task: its study, its records, its losses, its scores."""

import sys
import typing
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from fedpact.common import evaluation, study_check, tasks
from fedpact.common import model as models
from fedpact.common.errors import DataError, ModelError, UsageError
from fedpact.common.study import Study
from fedpact.common.study_template import template
from fedpact.common.tabular import Table, rows_for
from fedpact.common.task_section import KINDS, TaskName
from support.tiny_others import other_base

CPU = torch.device("cpu")
SECTIONS = {
    "text-classification": {"labels": ["mild", "severe"], "text_pair_column": "other"},
    "multi-label-classification": {"labels": ["itch", "coma", "shock"]},
    "text-regression": {"low": -1.0, "high": 3.0},
    "causal-language-modelling": {},
    "sequence-to-sequence": {},
    "image-classification": {"labels": ["dark", "bright"]},
    "audio-classification": {"labels": ["low", "high"]},
}


def a_study(tiny, name, **fields) -> Study:
    document = other_base(name, tiny).document()
    document["task"] = {"name": name, **SECTIONS[name], **fields}
    return Study.model_validate(document)


@pytest.fixture(params=SECTIONS)
def study(tiny, request):
    return a_study(tiny, request.param)


def learned(study):
    """The study's model with an adapter in which nothing is zero."""
    model = models.build(study, CPU)
    weights = models.get_adapter(model)
    drawn = np.random.default_rng(0).normal(0, 1, weights.flat.shape).astype(np.float32)
    models.set_adapter(model, type(weights)(weights.manifest, drawn))
    return model


def encoded(study, rows=None):
    task = tasks.for_study(study)
    return task.encode(models.load_processor(study), rows or task.invented(), 12)


# Of every task


def test_every_task_has_a_file_a_kind_a_template_and_is_tested_here():
    names = typing.get_args(TaskName)
    assert set(names) == set(KINDS) == set(SECTIONS)
    for name in names:
        text = template(name)
        assert study_check.check(study_check.tomllib.loads(text), text) == []
        assert f'name = "{name}"' in text
        assert text.count("\n[") == template().count("\n[")


def test_an_unknown_task_has_no_template():
    with pytest.raises(UsageError, match="There is no task nonsense"):
        template("nonsense")


def test_a_canonical_study_comes_back(study):
    assert Study.from_canonical(study.canonical()) == study


def test_each_loss_is_its_own_records_and_scores_are_shares(study):
    task, model, records = tasks.for_study(study), learned(study).eval(), encoded(study)
    batch = records.collate(np.arange(4), pad_id=0, device=CPU)
    losses, output = task.loss(model, batch)
    scores = task.score(output, batch)
    assert losses.shape == scores.shape == (4,)
    assert losses.min() >= 0
    assert losses.max() > 0
    assert 0 <= scores.min() <= scores.max() <= 1
    for index in range(4):
        alone = records.collate(np.array([index]), pad_id=0, device=CPU)
        torch.testing.assert_close(
            task.loss(model, alone)[0], losses[[index]], atol=1e-5, rtol=1e-4
        )


def test_a_head_at_zero_loses_no_more_than_a_guess(study):
    task, records = tasks.for_study(study), encoded(study)
    found = evaluation.score(models.build(study, CPU), records, task, pad_id=0, device=CPU)
    assert found.losses.max() <= study.loss_clip / 2 + 1e-6


def test_what_is_measured_has_names_and_is_finite(study):
    task, records = tasks.for_study(study), encoded(study)
    found = evaluation.evaluate(learned(study), records, task, pad_id=0, device=CPU)
    assert study.task.kind.score not in found.more
    assert np.isfinite(list(found.more.values())).all()


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("text-classification", {"labels": []}, "text-classification needs `labels`"),
        ("text-classification", {"low": 0.0}, "text-classification does not read `low`"),
        ("text-regression", {"labels": ["a", "b"]}, "text-regression does not read `labels`"),
        ("text-regression", {"high": None}, "text-regression needs `high`"),
        ("text-regression", {"low": 3.0}, "`low` must be below `high`"),
        ("multi-label-classification", {"labels": ["a|b", "c"]}, "cannot be told from two"),
    ],
)
def test_what_a_task_cannot_be_is_refused(tiny, name, fields, why):
    with pytest.raises(ValidationError, match=why.replace("|", r"\|")):
        a_study(tiny, name, **fields)


# Pairs


def test_a_pair_is_read_together_and_the_model_knows_which_is_which(tiny):
    study = a_study(tiny, "text-classification")
    rows = {"text": ["the coma"], "other": ["a day"], "label": ["mild"]}
    records = encoded(study, rows)
    words = models.load_processor(study).convert_ids_to_tokens(records.ids.tolist())
    assert words == ["[CLS]", "the", "coma", "[SEP]", "a", "day", "[SEP]"]
    batch = records.collate(np.array([0]), pad_id=0, device=CPU)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    task, model = tasks.for_study(study), learned(study).eval()
    without = batch | {"token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    assert task.loss(model, batch)[0] != task.loss(model, without)[0]


# Several labels


def test_labels_stand_with_bars_between_them_or_not_at_all(tiny):
    study = a_study(tiny, "multi-label-classification")
    task = tasks.for_study(study)
    table = Table(
        "csv", "0" * 64, {"text": ["a", "b", "c"], "label": ["", "coma| itch", "coma"]}
    )
    rows = rows_for(table, task, "data.csv")
    assert encoded(study, rows).labels.tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert task.unknown({"label": ["coma|ache", "ache", ""]}) == {"ache": 2}


def test_f1_over_labels_by_hand(tiny):
    task = tasks.for_study(a_study(tiny, "multi-label-classification"))
    output = torch.tensor([[1.0, 1, -1], [1, -1, -1], [-1, -1, -1]])
    batch = {"labels": torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0]])}
    torch.testing.assert_close(task.score(output, batch), torch.tensor([2, 2, 2]) / 3)
    found = task.metrics(task.observe(output, batch))
    # The first label: 2 of 2; the second: none of 1 said and 2 held; the third never occurs.
    assert found == pytest.approx({"micro_f1": 2 * 2 / (3 + 4), "macro_f1": 1 / 3})


# Amounts


@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_amounts_are_shares_of_the_range(tiny, shares):
    study = a_study(tiny, "text-regression")
    values = [str(-1 + 4 * share) for share in shares]
    found = tasks.for_study(study).targets(values)
    np.testing.assert_allclose(found, shares, atol=1e-6)


def test_values_out_of_range_are_refused(tiny):
    task = tasks.for_study(a_study(tiny, "text-regression"))
    table = Table("csv", "0" * 64, {"text": ["a"] * 4, "label": ["3", "3.1", "nan", "many"]})
    with pytest.raises(
        DataError, match=r"values that are not from -1 to 3: '3.1' \(1\), 'many'"
    ):
        rows_for(table, task, "data.csv")


def test_correlations_and_error_by_hand(tiny):
    task = tasks.for_study(a_study(tiny, "text-regression"))
    output, batch = torch.tensor([0.0, 0.5, 1.5]), {"labels": torch.tensor([0.0, 0.25, 1.0])}
    assert task.score(output, batch).tolist() == [1, 0.75, 1]
    found = task.metrics(task.observe(output, batch))
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] == pytest.approx(np.corrcoef([0, 0.5, 1.5], [0, 0.25, 1])[0, 1])
    assert found["rmse"] == pytest.approx(4 * np.sqrt((0.25**2 + 0.5**2) / 3))
    assert task.metrics([(0.5, 0.1), (0.5, 0.9)])["pearson"] == 0


# Text that is written


def test_each_token_is_foretold_and_the_end_of_a_text_that_is_not_cut(tiny):
    task = tasks.for_study(a_study(tiny, "causal-language-modelling"))
    tokenizer = models.load_processor(a_study(tiny, "causal-language-modelling"))
    tokenizer.eos_token = "[MASK]"
    records = task.encode(tokenizer, {"text": ["the coma", "a day " * 9]}, 6)
    words = [tokenizer.convert_ids_to_tokens(records.main.of(row)) for row in range(2)]
    assert words[0] == ["[CLS]", "the", "coma", "[SEP]", "[MASK]"]
    assert words[1] == ["[CLS]", "a", "day", "a", "day", "[SEP]"]


@pytest.mark.parametrize("name", ["causal-language-modelling", "sequence-to-sequence"])
def test_a_record_loses_the_mean_of_its_tokens_and_perplexity_is_of_all_alike(tiny, name):
    study = a_study(tiny, name)
    task, model, records = tasks.for_study(study), learned(study).eval(), encoded(study)
    losses, seen = [], []
    for row in range(4):
        batch = records.collate(np.array([row]), pad_id=0, device=CPU)
        loss, output = task.loss(model, batch)
        theirs = model(**{**batch, "labels": batch.get("labels", batch["input_ids"])}).loss
        torch.testing.assert_close(loss[0], theirs, atol=1e-5, rtol=1e-4)
        losses.append(float(theirs.detach()) * float(output[0, 2]))
        seen += task.observe(output, batch)
    tokens = sum(count for _, count in seen)
    assert task.metrics(seen)["perplexity"] == pytest.approx(np.exp(sum(losses) / tokens), 1e-4)


def test_a_target_longer_than_its_text_counts_in_a_micro_batch(tiny):
    study = a_study(tiny, "sequence-to-sequence")
    records = encoded(study, {"text": ["itch", "a day"], "target": ["the coma after", "itch"]})
    assert records.lengths.tolist() == [5, 4]


def test_a_gpt2_that_reads_less_than_the_study_is_refused(tiny):
    document = a_study(tiny, "causal-language-modelling").model_dump()
    document["training"]["max_length"] = 17
    with pytest.raises(ModelError, match="reads 16 tokens"):
        models.build(Study.model_validate(document), CPU)


# Images


def an_image(mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
    sink = BytesIO()
    Image.fromarray(pixels).convert(mode).save(sink, "PNG")
    return sink.getvalue()


def test_pixels_are_the_processors_to_less_than_a_step_of_colour(tiny):
    study = a_study(tiny, "image-classification")
    processor = models.load_processor(study)
    records = encoded(study, {"image": [an_image()], "label": ["dark"]})
    found = records.collate(np.array([0]), pad_id=0, device=CPU)["pixel_values"]
    picture = Image.open(BytesIO(an_image()))
    plainly = processor(picture, return_tensors="pt")["pixel_values"]
    step = 1 / 255 / max(processor.image_std)
    assert (found - plainly).abs().max() < step / 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_kinds_are_read_in_colour(tiny, mode):
    rows = {"image": [an_image(mode)], "label": ["dark"]}
    assert encoded(a_study(tiny, "image-classification"), rows).main.values.shape[1] == 3


@pytest.mark.parametrize("content", [b"no image", an_image()[:60], b""])
def test_what_is_no_image_is_refused_by_its_number(tiny, content):
    rows = {"image": [an_image(), content], "label": ["dark", "dark"]}
    with pytest.raises(DataError, match="Record 2: its image cannot be read"):
        encoded(a_study(tiny, "image-classification"), rows)


# Sounds


def a_sound(samples=1600, rate=16_000, channels=1):
    wave = np.random.default_rng(0).uniform(-0.1, 0.3, (samples, channels))
    sink = BytesIO()
    soundfile.write(sink, wave, rate, format="WAV")
    return sink.getvalue()


def test_a_sound_is_the_mean_of_its_channels_cut_and_normalised_by_itself(tiny):
    rows = {"audio": [a_sound(channels=2), a_sound(9999)], "label": ["low", "high"]}
    records = encoded(a_study(tiny, "audio-classification"), rows)
    assert records.main.lengths.tolist() == [1600, 12 * 320]
    assert records.lengths.tolist() == [5, 12]
    for row in range(2):
        wave = records.main.of(row)
        assert wave.mean() == pytest.approx(0, abs=1e-5)
        assert wave.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no sound", "Record 1: its sound cannot be read"),
        (a_sound(rate=8000), "has 8000 samples a second, the model hears 16000.* Resample"),
        (a_sound(399), "has 399 samples, 400 are needed"),
    ],
)
def test_sounds_that_cannot_be_heard_are_refused(tiny, content, why):
    with pytest.raises(DataError, match=why):
        encoded(a_study(tiny, "audio-classification"), {"audio": [content], "label": ["low"]})


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_head_says_what_the_librarys_says(tiny, norm):
    base = other_base("audio-classification" + " layer" * (norm == "layer"), tiny)
    document = base.document(task={"name": "audio-classification", "labels": ["low", "high"]})
    study = Study.model_validate(document)
    task, model = tasks.for_study(study), learned(study).eval()
    wave = encoded(study, {"audio": [a_sound(12 * 320)], "label": ["low"]})
    batch = wave.collate(np.array([0]), pad_id=0, device=CPU)
    theirs = model(batch["input_values"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(task.loss(model, batch)[1], theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("library", "name"),
    [("PIL", "image-classification"), ("soundfile", "audio-classification")],
)
def test_what_reads_files_is_an_extra(tiny, monkeypatch, library, name):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=r"fedpact\[media\]"):
        tasks.for_study(a_study(tiny, name)).invented()


# What stands in cells


@pytest.mark.parametrize(
    ("cell", "given", "read"),
    [
        ("list", ["a", "b"], ["a", "b"]),
        ("list", '["a"]', ["a"]),
        ("bytes", {"bytes": b"png", "path": None}, b"png"),
        ("bytes", "cG5n", b"png"),
        ("maybe", None, ""),
    ],
)
def test_cells_are_read_as_the_task_says(tiny, cell, given, read):
    class Other:
        columns, person_column = ("x",), None
        cells: typing.ClassVar = {"x": cell}

        def unknown(self, rows):
            return {}

    table = Table("jsonl", "0" * 64, {"x": [given]})
    assert rows_for(table, Other(), "data.jsonl") == {"x": [read]}
    if cell != "maybe":
        broken = Table("jsonl", "0" * 64, {"x": [7]})
        with pytest.raises(DataError, match="record 1: 'x' is a int, not"):
            rows_for(broken, Other(), "data.jsonl")
