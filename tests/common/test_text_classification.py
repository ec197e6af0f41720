"""The task: texts and labels become records, logits become losses and metrics."""

import numpy as np
import pytest
import torch

from fedpact.common import base_models, tasks
from fedpact.common import model as models

LABELS = ["mild", "severe", "fatal"]


@pytest.fixture(scope="module")
def study(tiny):
    columns = {"text_column": "note", "label_column": "grade"}
    return tiny.study(task={"labels": LABELS, **columns})


@pytest.fixture(scope="module")
def task(study):
    return tasks.for_study(study)


@pytest.fixture(scope="module")
def tokenizer(study):
    return base_models.load_tokenizer(study)


def test_it_is_found_by_its_name_and_knows_its_columns(task):
    assert task.columns == ("note", "grade")
    assert task.model_config()["num_labels"] == 3
    assert task.model_config()["label2id"] == {"mild": 0, "severe": 1, "fatal": 2}


def test_texts_become_tokens_and_labels_their_numbers(task, tokenizer):
    rows = {"note": ["The patient had coma", "Nonsense"], "grade": ["fatal", "mild"]}
    records = task.encode(tokenizer, rows, 12)
    words = tokenizer.convert_ids_to_tokens(records.ids.tolist())
    assert words[:6] == ["[CLS]", "the", "patient", "had", "coma", "[SEP]"]
    assert words[6:] == ["[CLS]", "[UNK]", "[SEP]"]
    assert records.offsets.tolist() == [0, 6, 9]
    assert records.labels.tolist() == [2, 0]


def test_long_texts_are_cut_and_still_end(task, tokenizer):
    rows = {"note": ["the day " * 50], "grade": ["mild"]}
    records = task.encode(tokenizer, rows, 7)
    assert records.lengths.tolist() == [7]
    assert records.ids[-1] == tokenizer.sep_token_id


def test_one_records_tokens_do_not_depend_on_the_others(task, tokenizer):
    rows = {"note": ["the day", "the patient had a day"], "grade": ["mild", "mild"]}
    together = task.encode(tokenizer, rows, 12)
    alone = task.encode(tokenizer, {"note": ["the day"], "grade": ["mild"]}, 12)
    np.testing.assert_array_equal(together.ids[: together.offsets[1]], alone.ids)


def test_no_texts_are_no_records(task, tokenizer):
    assert len(task.encode(tokenizer, {"note": [], "grade": []}, 12)) == 0


def test_labels_that_the_study_does_not_know_are_counted(task):
    rows = {"note": ["a"] * 4, "grade": ["mild", "Mild", "none", "Mild"]}
    assert task.unknown(rows) == {"Mild": 2, "none": 1}
    assert task.unknown({"note": ["a"], "grade": ["fatal"]}) == {}


def test_losses_are_each_records_own(task, study):
    """One loss a record: their mean would hide from DP-SGD who contributed what."""
    model = models.build(study, torch.device("cpu"))
    rng = np.random.default_rng(0)
    weights = models.get_adapter(model)
    drawn = rng.normal(0, 1, weights.flat.shape).astype(np.float32)
    models.set_adapter(model, type(weights)(weights.manifest, drawn))
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([2, 0]),
    }
    losses, logits = task.loss(model, batch)
    assert (losses.shape, logits.shape, logits.dtype) == ((2,), (2, 3), torch.float32)
    chances = torch.softmax(logits, dim=1)
    expected = -torch.log(chances[[0, 1], [2, 0]])
    torch.testing.assert_close(losses, expected)
    # Padding is masked: a record's loss is the same without it.
    alone = {
        "input_ids": ids[1:, :3],
        "attention_mask": ids[1:, :3] > 0,
        "labels": batch["labels"][1:],
    }
    torch.testing.assert_close(task.loss(model, alone)[0], losses[1:], atol=1e-5, rtol=1e-4)


def test_the_likeliest_label_is_the_prediction(task):
    logits = torch.tensor([[3.0, 1, 2], [0, 0, 1], [1, 2, 0], [5, 4, 3]])
    assert task.score(logits, {"labels": torch.tensor([0, 2, 0, 1])}).tolist() == [1, 1, 0, 0]
