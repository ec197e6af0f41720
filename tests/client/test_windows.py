"""Long texts in windows: how they are cut, and that a document has one loss and one gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpact.client import dpsgd, selftest
from fedpact.client.audit import audit
from fedpact.client.dpsgd import PrivateStep
from fedpact.client.membership import attack
from fedpact.client.site import plan
from fedpact.client.trainer import LocalTraining
from fedpact.client.workbench import Workbench
from fedpact.common import model as models
from fedpact.common import tasks
from fedpact.common.errors import TrainingError
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.study import Study
from fedpact.common.tasks.windows import Windows
from support.site_factory import INSTITUTION

CPU = torch.device("cpu")
# Of up to three windows of 6 tokens, 4 of them words: one, two and three, and more than is read.
TEXTS = ["itch", "the coma", "a day after the dose", "coma " * 9, "the day itch " * 9]
KINDS = {
    "text-classification": ({"labels": ["mild", "severe"]}, ["mild", "severe"]),
    "multi-label-classification": ({"labels": ["itch", "coma"]}, ["", "itch|coma"]),
    "text-regression": ({"low": 0.0, "high": 1.0}, ["0", "1"]),
}


@pytest.fixture(scope="module")
def workbench():
    return Workbench()


def a_study(tiny, name="text-classification", **task) -> Study:
    document = tiny.document(training={"max_length": 6})
    fields = {"max_windows": 3, "window_overlap": 1, **KINDS[name][0], **task}
    return Study.model_validate(document | {"task": {"name": name, **fields}})


def documents(study, model):
    labels = (KINDS[study.task.name][1] * 3)[: len(TEXTS)]
    rows = {"text": TEXTS, "label": labels}
    return tasks.for_study(study).encode(model.tokenizer, rows, study.training.max_length)


def an_adapter(model):
    """One in which nothing is zero."""
    manifest = models.get_adapter(model.module).manifest
    drawn = np.random.default_rng(0).normal(0, 0.2, manifest.size).astype(np.float32)
    return models.Weights(manifest, drawn)


@given(
    words=st.integers(0, 60),
    size=st.integers(2, 12),
    overlap=st.integers(0, 5),
    most=st.integers(1, 9),
)
def test_windows_are_full_overlap_and_leave_nothing_between(words, size, overlap, most):
    windows = Windows(size + 2, min(overlap, (size + 1) // 2), most)
    body = list(range(10, 10 + words))
    cut = windows.cut([1, *body, 2], [1, *[0] * words, 1])
    if words <= size:
        assert cut == [1, *body, 2]
        return
    each = np.array(cut).reshape(-1, size + 2)
    assert len(each) <= most
    assert set(each[:, 0]) == {1}
    assert set(each[:, -1]) == {2}
    inner = each[:, 1:-1]
    assert (np.diff(inner, axis=1) == 1).all()
    assert (np.diff(inner[:, 0]) <= size - windows.overlap).all()
    assert (np.diff(inner[:, 0]) > 0).all()
    read = set(inner.ravel())
    assert read == set(body) or len(each) == most
    assert read == set(range(10, 10 + len(read)))


def test_the_prediction_is_the_mean_of_the_windows(tiny, workbench):
    study = a_study(tiny)
    model, task = workbench.model(study), tasks.for_study(study)
    models.set_adapter(model.module, an_adapter(model))
    records = documents(study, model)
    assert records.lengths.tolist() == [3, 4, 12, 18, 18]
    batch = records.collate(np.arange(len(records)), pad_id=0, device=CPU)
    _, logits = task.loss(model.module, batch)
    for row in range(len(records)):
        ids = torch.from_numpy(records.main.of(row).astype(np.int64))
        said = model.module(input_ids=ids.view(-1, min(len(ids), 6))).logits
        torch.testing.assert_close(logits[row], said.mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_documents_gradient_is_clipped_as_one(tiny, workbench, name):
    study = a_study(tiny, name)
    model = workbench.model(study)
    records, received = documents(study, model), an_adapter(model)
    models.set_adapter(model.module, received)
    trained = [
        parameter
        for parameter in models.adapter_parameters(model.module).values()
        if parameter.requires_grad
    ]
    alone = []
    for row in range(len(records)):
        loss = model.trainer.losses(records, np.array([row]), "fp32").sum()
        alone.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
    clip = float(torch.stack(alone).norm(dim=1).median())
    clipped = sum(one * min(1.0, clip / (float(one.norm()) + 1e-6)) for one in alone)
    for max_tokens in (1, 4096):
        how = LocalTraining(
            steps=1,
            batch_size=1,
            learning_rate=1.0,
            optimizer="sgd",
            max_grad_norm=clip,
            mechanism=SubsampledGaussian(1e-9, 1.0, 1),
            max_tokens=max_tokens,
        )
        change = torch.from_numpy(model.trainer.train(received, records, how).change.flat)
        torch.testing.assert_close(change, -clipped, atol=1e-5, rtol=1e-3)


def test_windows_are_not_taken_for_records(tiny, workbench):
    study = a_study(tiny)
    model = workbench.model(study)
    records = documents(study, model)
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    with PrivateStep(
        model.module,
        optimizer,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=1,
    ) as step:
        losses = model.trainer.losses(records, np.arange(len(records)), "fp32")
        with pytest.raises(TrainingError, match="no gradient for each record"):
            step.add(losses)


@pytest.mark.parametrize("persons", [False, True])
def test_the_self_test_passes_and_finds_windows_of_others(
    tiny, workbench, monkeypatch, persons
):
    study = a_study(tiny)
    if persons:
        document = study.model_dump()
        document["task"]["person_column"] = "patient"
        document["privacy"] |= {"unit": "person", "max_records_per_person": 2}
        document["institutions"][0]["persons"] = 60
        study = Study.model_validate(document)
    model = workbench.model(study)
    how = LocalTraining.from_study(study, INSTITUTION, plan(study, INSTITUTION), CPU)

    def test():
        parts = (model.module, model.trainer, model.tokenizer, how)
        selftest.self_test(study, INSTITUTION, 1, *parts)

    test()
    mean = Windows.mean
    monkeypatch.setattr(Windows, "mean", lambda *args: mean(*args).roll(1, 0))
    with pytest.raises(TrainingError, match="not its own"):
        test()


@pytest.mark.parametrize("alone", [False, True])
def test_an_audit_finds_windows_that_are_clipped_alone(tiny, workbench, monkeypatch, alone):
    document = a_study(tiny).model_dump()
    document["training"] |= {"rounds": 1, "local_steps": 1, "batch_size": 120}
    document["privacy"]["target_epsilon"] = 1.0
    document["adapter"]["r"] = 16
    study = Study.model_validate(document)
    # All of three windows, and so are the canaries.
    records = documents(study, workbench.model(study)).select(np.full(20, 3))
    if alone:
        monkeypatch.setattr(dpsgd, "by_record", lambda parameter, *_: parameter.grad_sample)
    how = {"canaries": 1000, "guesses": 100, "rng": np.random.default_rng(0)}
    found = audit(study, INSTITUTION, records, workbench, **how)
    assert found.contradicted == alone


def test_membership_is_of_documents(tiny, workbench):
    study, rng = a_study(tiny), np.random.default_rng(0)
    records = documents(study, workbench.model(study)).select(np.arange(10) % len(TEXTS))
    assert attack(study, INSTITUTION, records, workbench, shadows=0, rng=rng).units == 10


def test_a_window_that_is_not_there_says_nothing(tiny, workbench):
    study = a_study(tiny)
    model, task = workbench.model(study), tasks.for_study(study)
    records = documents(study, model)
    alone = records.collate(np.array([0]), pad_id=0, device=CPU)
    beside = records.collate(np.array([0, 4]), pad_id=0, device=CPU)
    models.set_adapter(model.module, an_adapter(model))
    torch.testing.assert_close(
        task.loss(model.module, alone)[0], task.loss(model.module, beside)[0][:1]
    )
    assert replace(records, window=None).rows(np.arange(5)) == 1
    assert [records.rows(np.array([row])) for row in range(5)] == [1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"text_pair_column": "other"}, "a pair cannot be read in windows"),
        ({"max_windows": 1}, "`window_overlap` needs a `max_windows` above 1"),
        ({"window_overlap": 3}, "must be below half of `training.max_length`"),
    ],
)
def test_windows_that_cannot_be_are_refused(tiny, task, why):
    with pytest.raises(ValidationError, match=why):
        a_study(tiny, **task)
