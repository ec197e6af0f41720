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
from peft import PeftModel
from PIL import Image
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from fedpact.common import base_models, evaluation, study_check, tasks
from fedpact.common import model as models
from fedpact.common.errors import DataError, ModelError, UsageError
from fedpact.common.records import CHANCE
from fedpact.common.study import Study
from fedpact.common.study_template import template
from fedpact.common.tabular import Table, rows_for
from fedpact.common.task_section import KINDS, TaskName
from fedpact.common.tasks import masking
from support.task_studies import encoded, learned
from support.tiny_others import other_base

CPU = torch.device("cpu")
SECTIONS = {
    "text-classification": {"labels": ["mild", "severe"], "text_pair_column": "other"},
    "multi-label-classification": {"labels": ["itch", "coma", "shock"]},
    "text-regression": {"low": -1.0, "high": 3.0},
    "token-classification": {"labels": ["O", "B-sign", "I-sign", "B-drug"]},
    "question-answering": {"text_pair_column": "context"},
    "masked-language-modelling": {},
    "item-recommendation": {"labels": ["itch", "coma", "shock"]},
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
        ("question-answering", {"text_pair_column": None}, "needs `text_pair_column`"),
        ("token-classification", {"labels": ["B-x", "I-x"]}, "`labels` need O"),
        ("token-classification", {"labels": ["O", "x"]}, "'x' is neither O nor B- or I-"),
        ("token-classification", {"labels": ["O", "I-x"]}, "'I-x' needs B-x"),
        ("token-classification", {"text_pair_column": "b"}, "does not read `text_pair_column`"),
    ],
)
def test_what_a_task_cannot_be_is_refused(tiny, name, fields, why):
    with pytest.raises(ValidationError, match=why.replace("|", r"\|")):
        a_study(tiny, name, **fields)


@pytest.mark.parametrize("name", SECTIONS)
def test_pooling_is_to_be_chosen_where_it_does_something_and_nowhere_else(tiny, name):
    document = a_study(tiny, name).model_dump(mode="json")
    document["model"]["pooling"] = "mean"
    if name in ("text-classification", "multi-label-classification", "text-regression"):
        model = models.build(Study.model_validate(document), CPU)
        assert any(".backbone." in named for named, _ in model.named_modules())
        return
    for pooling in ("mean", "first"):
        document["model"]["pooling"] = pooling
        with pytest.raises(ValidationError, match=r"`model.pooling` does nothing"):
            Study.model_validate(document)


# Pairs


def test_a_pair_is_read_together_and_the_model_knows_which_is_which(tiny):
    study = a_study(tiny, "text-classification")
    rows = {"text": ["the coma"], "other": ["a day"], "label": ["mild"]}
    records = encoded(study, rows)
    words = base_models.load_processor(study).convert_ids_to_tokens(records.ids.tolist())
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


# Entities


def tagged(study, words, tags):
    task = tasks.for_study(study)
    table = Table("jsonl", "0" * 64, {"text": words, "label": tags})
    return encoded(study, rows_for(table, task, "data.jsonl"))


def test_a_words_tag_is_at_its_first_token_and_cut_words_are_measured_as_outside(tiny):
    study = a_study(tiny, "token-classification")
    words = ["days", "coma", *["a"] * 9]  # [CLS] day ##s coma a a a a a a a [SEP]
    records = tagged(study, [words], [["O", "B-sign", "I-sign", *["O"] * 7, "B-drug"]])
    assert records.columns["labels_places"].of(0).tolist() == [1, *range(3, 11), -1, -1]
    task, batch = tasks.for_study(study), records.collate(np.array([0]), pad_id=0, device=CPU)
    _, said = task.loss(learned(study), batch)
    assert said[0, -2:].tolist() == [0, 0]
    # The loss is the mean over the words that are read; what is said of others changes nothing.
    logits = task.logits(learned(study), batch)[0, [1, *range(3, 11)]]
    by_hand = torch.nn.functional.cross_entropy(logits, batch["labels"][0, :9])
    torch.testing.assert_close(task.loss(learned(study), batch)[0][0], by_hand)


def test_tags_that_do_not_fit_are_refused(tiny):
    study = a_study(tiny, "token-classification")
    with pytest.raises(DataError, match=r"'1 tags for 2 words' \(1\), 'B-x' \(1\)"):
        tagged(study, [["a", "coma"], ["a"]], [["O"], ["B-x"]])
    with pytest.raises(DataError, match="'0 tags for 0 words'"):
        tagged(study, [[]], [[]])
    with pytest.raises(DataError, match="'7 as a word'"):
        tagged(study, [[7]], [["O"]])


def test_entities_count_whole_or_not_at_all(tiny):
    task = tasks.for_study(a_study(tiny, "token-classification"))
    held = torch.tensor([[1, 2, 0, 3], [0, 0, -100, -100], [0, 1, -100, -100]])
    said = torch.tensor([[1, 0, 0, 3], [0, 0, -100, -100], [0, 0, -100, -100]])
    assert task.score(said, {"labels": held}).tolist() == [0.5, 1, 0]
    found = task.metrics(task.observe(said, {"labels": held}))
    # Two said, of which one is right, of three that hold.
    assert found == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "entity_f1": 0.4})


# Questions


def asked(study, question, context, answer, *, start=None, length=12):
    task = tasks.for_study(study)
    start = context.find(answer) if start is None else start
    answers = {"text": [answer] if answer else [], "answer_start": [start] if answer else []}
    cells = {"text": [question], "context": [context], "label": [answers]}
    rows = rows_for(Table("jsonl", "0" * 64, cells), task, "data.jsonl")
    return task.encode(base_models.load_processor(study), rows, length)


@pytest.mark.parametrize(
    ("question", "context", "answer", "span"),
    [
        # [CLS] drug [SEP] the patient had a day ##s after [SEP]
        ("drug", "the patient had a days after", "days after", [7, 9]),
        ("drug", "the patient had a days after", "ay", [7, 7]),
        ("drug", "the patient had a days after", "", [0, 0]),
        ("drug", "the patient had a days after a coma", "coma", [0, 0]),
        ("drug", "the patient had a days after a coma", "after a", [9, 10]),
        ("drug", "the patient had a days after a coma", "a coma", [0, 0]),
        # Of the question, half of the room is left.
        ("a a a a a a a a a", "the coma", "coma", [7, 7]),
    ],
)
def test_a_span_is_where_its_answer_is_or_at_the_first_token(
    tiny, question, context, answer, span
):
    study = a_study(tiny, "question-answering")
    assert asked(study, question, context, answer).labels.tolist() == [span]


def test_the_best_span_is_text_again(tiny):
    study = a_study(tiny, "question-answering")
    task = tasks.for_study(study)
    records = asked(study, "drug", "The  patient had a coma!", "patient had")
    batch = records.collate(np.array([0]), pad_id=0, device=CPU)
    # [CLS] drug [SEP] the patient had a coma [UNK] [SEP]

    def scores(start, end):
        logits = torch.zeros(1, 2, batch["input_ids"].shape[1])
        logits[0, 0, start] = logits[0, 1, end] = 3
        return task.score(logits, batch).item(), task.observe(logits, batch)

    assert scores(4, 5) == (1, [True])
    assert scores(3, 5) == (1, [True])  # articles do not count
    assert scores(4, 7)[0] == pytest.approx(2 * 2 / (2 + 3))
    assert scores(0, 0) == (0, [False])
    assert scores(1, 1)[0] == 0  # the question is no answer: the best that is left is none
    assert task.metrics([True, False]) == {"exact_match": 0.5}


def test_answers_that_stand_elsewhere_are_refused(tiny):
    study = a_study(tiny, "question-answering")
    with pytest.raises(DataError, match=r"where they say: 'coma at 3' \(1\)"):
        asked(study, "drug", "the coma", "coma", start=3)
    with pytest.raises(DataError, match="'coma at -4'"):
        asked(study, "drug", "the coma", "coma", start=-4)
    with pytest.raises(DataError, match="no room for a context"):
        asked(study, "drug", "the coma", "coma", length=4)


# What is hidden


@given(
    may=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 2**62 - 1),
)
def test_a_share_is_hidden_of_what_may_be_and_one_at_least(may, share, seed):
    may = torch.tensor(may)
    numbers = torch.arange(seed, seed + len(may))
    drawn, _ = masking.draw(may, numbers, share)
    assert not (drawn & ~may).any()
    wanted = (share * may.sum(dim=1)).round().clamp(min=1).minimum(may.sum(dim=1))
    assert drawn.sum(dim=1).tolist() == wanted.tolist()
    alone, _ = masking.draw(may[-1:, :], numbers[-1:], share)
    assert torch.equal(alone[0], drawn[-1])


def test_words_are_hidden_as_in_bert(tiny):
    study = a_study(tiny, "masked-language-modelling")
    task, model = tasks.for_study(study), models.build(study, CPU)
    records = encoded(study, {"text": [" ".join(["coma"] * 10)] * 4000})
    batch = records.collate(np.arange(4000), pad_id=0, device=CPU)
    batch[CHANCE] = torch.arange(4000)
    drawn, chances = masking.draw(batch["labels"] != -100, batch[CHANCE], 0.15)
    assert drawn.sum(dim=1).unique().tolist() == [2]
    read = task._hide(model, batch, drawn, chances)
    assert torch.equal(read[~drawn], batch["input_ids"][~drawn])
    mask, coma = base_models.load_processor(study).convert_tokens_to_ids(["[MASK]", "coma"])
    assert (read[drawn] == mask).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (read[drawn] == coma).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert len(read[drawn].unique()) == model.get_input_embeddings().num_embeddings


def test_a_tied_head_is_not_trained(tiny):
    document = tiny.document(adapter={"modules_to_save": ["decoder"]})
    document["task"] = {"name": "masked-language-modelling"}
    with pytest.raises(ValidationError, match="the head is tied to the embeddings"):
        Study.model_validate(document)


def test_a_model_without_a_head_is_no_language_model(tiny, tmp_path):
    AutoModel.from_pretrained(tiny.folder).save_pretrained(tmp_path)
    study = a_study(tiny, "masked-language-modelling")
    base = study.model.model_copy(update={"base": str(tmp_path), "sha256": None})
    with pytest.raises(ModelError, match=r"lack .* tensors, among them cls"):
        models.build(study.model_copy(update={"model": base}), CPU)


def test_a_language_that_was_learned_is_a_base_model_to_fine_tune(tiny, tmp_path):
    study = a_study(tiny, "masked-language-modelling")
    model = learned(study).eval()
    models.save_peft(tmp_path / "adapter", models.get_adapter(model), study)
    base, adapter, merged = tiny.folder, tmp_path / "adapter", tmp_path / "merged"
    # As docs/how-to/choose-a-task.md has it.
    reader = AutoModelForMaskedLM.from_pretrained(base)
    reader = PeftModel.from_pretrained(reader, adapter).merge_and_unload()
    encoder = AutoModel.from_pretrained(base)
    encoder.load_state_dict(reader.base_model.state_dict(), strict=False)
    encoder.save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)

    document = tiny.document(model={"base": str(merged), "sha256": None})
    document["model"].pop("sha256")
    following = models.build(Study.model_validate(document), CPU).eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    known = model.base_model.model.bert(ids).last_hidden_state
    torch.testing.assert_close(following.base_model.model.bert(ids).last_hidden_state, known)
    unadapted = AutoModel.from_pretrained(base)(ids).last_hidden_state
    assert (known - unadapted).abs().max() > 0.1


# Items


def test_in_evaluation_the_last_item_is_hidden_and_no_other(tiny):
    study = a_study(tiny, "item-recommendation")
    task, model = tasks.for_study(study), learned(study).eval()

    def read(*items):
        batch = encoded(study, {"text": [items]}).collate(np.arange(1), pad_id=0, device=CPU)
        return task.loss(model, batch)[1]

    assert torch.equal(read("itch", "coma"), read("itch", "shock"))
    assert not torch.equal(read("itch", "coma"), read("coma", "coma"))
    # Of many, the latest.
    assert torch.equal(read("coma", *["itch"] * 12), read(*["itch"] * 12))


def test_ranks_by_hand(tiny):
    labels = [f"item {number}" for number in range(12)]
    task = tasks.for_study(a_study(tiny, "item-recommendation", labels=labels))
    output = torch.arange(12).float().repeat(4, 1)
    batch = {"labels": torch.tensor([[0, 11], [0, 10], [2, -100], [1, -100]])}
    assert task.score(output, batch).tolist() == [1, 1, 1, 0]
    found = task.metrics(task.observe(output, batch))
    gains = [1, 1 / np.log2(3), 1 / np.log2(11), 0]
    assert found["ndcg_at_10"] == pytest.approx(np.mean(gains))
    # Who says the same of all has said nothing.
    assert task.score(torch.zeros(4, 12), batch).sum() == 0


def test_items_must_be_the_studys_and_tokens_of_the_model(tiny):
    task = tasks.for_study(a_study(tiny, "item-recommendation"))
    table = Table("jsonl", "0" * 64, {"text": [["itch", "ache"], []]})
    with pytest.raises(DataError, match=r"does not know: 'ache' \(1\), 'no item' \(1\)"):
        rows_for(table, task, "data.jsonl")
    study = a_study(tiny, "item-recommendation", labels=["itch", "ache"])
    with pytest.raises(ModelError, match=r"no token for 1 of the study's items, .* 'ache'"):
        encoded(study)


# Text that is written


def test_each_token_is_foretold_and_the_end_of_a_text_that_is_not_cut(tiny):
    task = tasks.for_study(a_study(tiny, "causal-language-modelling"))
    tokenizer = base_models.load_processor(a_study(tiny, "causal-language-modelling"))
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
        own = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        theirs = model(**{**batch, "labels": batch.get("labels", own)}).loss
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
    processor = base_models.load_processor(study)
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
        ("object", {"text": []}, {"text": []}),
        ("object", '{"text": []}', {"text": []}),
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
