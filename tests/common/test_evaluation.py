"""Measuring a model on a set of records."""

import numpy as np
import pytest
import torch

from fedpact.common import base_models, evaluation, tasks
from fedpact.common import model as models
from fedpact.common.evaluation import Metrics, evaluate
from fedpact.common.records import EncodedRecords
from support.tiny_bert import some_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting(tiny):
    """A model that says something, its task, and records of many lengths."""
    study = tiny.study(training={"dropout": True})
    task, model = tasks.for_study(study), models.build(study, CPU)
    weights = models.get_adapter(model)
    drawn = np.random.default_rng(0).normal(0, 1, weights.flat.shape).astype(np.float32)
    models.set_adapter(model, type(weights)(weights.manifest, drawn))
    texts, labels = zip(*some_rows(150), strict=True)
    rows = {"text": list(texts), "label": list(labels)}
    return model, task, task.encode(base_models.load_tokenizer(study), rows, 12)


def measure(model, task, records) -> Metrics:
    return evaluate(model, records, task, pad_id=0, device=CPU)


def test_each_record_has_its_own_loss_whatever_the_order(setting):
    model, task, records = setting
    order = np.random.default_rng(0).permutation(len(records))

    def losses_and_scores(of):
        found = evaluation.score(model, of, task, pad_id=0, device=CPU)
        return found.losses, found.scores

    losses, scores = losses_and_scores(records)
    again, as_well = losses_and_scores(records.select(order))
    np.testing.assert_allclose(again, losses[order], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(as_well, scores[order])
    assert len(np.unique(losses)) > 50


def test_it_is_the_mean_over_records_one_by_one(setting):
    model, task, records = setting
    found = measure(model, task, records)
    losses, right = [], []
    with torch.inference_mode():
        model.eval()
        for index in range(len(records)):
            batch = records.collate(np.array([index]), pad_id=0, device=CPU)
            loss, logits = task.loss(model, batch)
            losses.append(float(loss))
            right.append(int(logits.argmax()) == records.labels[index])
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.score == pytest.approx(np.mean(right))
    assert 0 < found.score < 1, "the labels were not told apart from their order"


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_put_back(setting, training):
    model, task, records = setting
    model.train(training)
    assert measure(model, task, records) == measure(model, task, records)
    assert model.training is training


def test_the_size_and_order_of_batches_change_nothing(setting, monkeypatch):
    model, task, records = setting
    found = measure(model, task, records)
    shuffled = records.select(np.random.default_rng(0).permutation(len(records)))
    monkeypatch.setattr(evaluation, "_BATCH", 7)
    again = measure(model, task, shuffled)
    assert again.score == found.score
    assert again.loss == pytest.approx(found.loss, rel=1e-5)


def test_nothing_is_learned(setting):
    model, task, records = setting
    before = models.get_adapter(model).digest
    measure(model, task, records)
    assert models.get_adapter(model).digest == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_records_cannot_be_measured(setting):
    model, task, _ = setting
    with pytest.raises(ValueError, match="no records"):
        measure(model, task, EncodedRecords.from_lists([], []))
