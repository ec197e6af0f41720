"""A round of local training, from the adapter received to its change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel

from fedpact.client import dpsgd
from fedpact.client.trainer import LocalTraining, Trainer
from fedpact.common import model as models
from fedpact.common import tasks
from fedpact.common.adapter import Weights
from fedpact.common.errors import DataError, ModelError, TrainingError
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study

CPU = torch.device("cpu")
PLAIN = LocalTraining(steps=3, batch_size=4, learning_rate=0.1, optimizer="sgd")
PRIVATE = replace(PLAIN, mechanism=SubsampledGaussian(1.0, 0.5, PLAIN.steps))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def study_on(base, method="fedavg", mechanism="none"):
    return Study.model_validate(
        {
            "study": {"name": "tiny"},
            "task": {"labels": ["a", "b", "c"]},
            "model": {"base": str(base)},
            "adapter": {"r": 4},
            "training": {
                "batch_size": 4,
                "local_steps": 3,
                "precision": "fp32",
                "max_length": 16,
            },
            "privacy": {"mechanism": mechanism},
            "aggregation": {"method": method},
            "institutions": [
                {"name": "Clinic", "sector": "academia", "records": 1000},
                {"name": "Practice", "sector": "academia", "records": 3},
            ],
        }
    )


class CountingTask:
    """A study's task that also counts the records that it saw."""

    def __init__(self, task):
        self._task = task
        self.records = []
        self.score, self.observe, self.metrics = task.score, task.observe, task.metrics

    def loss(self, model, batch):
        self.records.append(len(batch["labels"]))
        return self._task.loss(model, batch)


def setting(base, **choices):
    study = study_on(base, **choices)
    model = models.build(study, CPU)
    task = CountingTask(tasks.for_study(study))
    return model, task, Trainer(model, task, pad_id=0, device=CPU)


def some_records(count, seed=0):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, 50, rng.integers(2, 13)).tolist() for _ in range(count)]
    return EncodedRecords.from_lists(ids, rng.integers(0, 3, count).tolist())


def some_adapter(model, seed=0):
    rng = np.random.default_rng(seed)
    manifest = models.get_adapter(model).manifest
    return Weights(manifest, rng.normal(0, 0.2, manifest.size).astype(np.float32))


def dp(how, *, noise=1.0, rate=0.5):
    return replace(how, mechanism=SubsampledGaussian(noise, rate, how.steps))


def seeded(seed=0):
    return np.random.default_rng(seed)


def full_batch_steps(model, received, records, how, anchor=None):
    """The same by hand: full-batch steps with one padded batch and a mean loss."""
    models.set_adapter(model, anchor or received)
    places = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    models.set_adapter(model, received)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[how.optimizer]
    optimizer = kind(
        [p for p in model.parameters() if p.requires_grad],
        lr=how.learning_rate,
        weight_decay=how.weight_decay,
    )
    batch = records.collate(np.arange(len(records)), pad_id=0, device=CPU)
    labels = batch.pop("labels")
    for _ in range(how.steps):
        functional.cross_entropy(model(**batch).logits, labels).backward()
        for parameter, place in zip(optimizer.param_groups[0]["params"], places, strict=True):
            parameter.grad += how.proximal * (parameter.detach() - place)
        optimizer.step()
        optimizer.zero_grad()
    return models.get_adapter(model).flat - received.flat


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_plain_training_where_nothing_is_private(base, optimizer):
    model, _, trainer = setting(base)
    received, records = some_adapter(model), some_records(9)
    how = replace(
        PLAIN, batch_size=9, optimizer=optimizer, weight_decay=0.1, learning_rate=0.01
    )
    got = trainer.train(received, records, replace(how, max_tokens=24))
    expected = full_batch_steps(model, received, records, how)
    np.testing.assert_allclose(got.change.flat, expected, atol=1e-5)
    assert (got.steps, got.ran) == (3, None)


def test_the_private_way_is_the_same_where_nothing_is_clipped_and_noise_is_tiny(base):
    model, _, trainer = setting(base)
    received, records = some_adapter(model), some_records(9)
    how = replace(dp(PLAIN, noise=1e-9, rate=1.0), batch_size=9, max_grad_norm=100.0)
    got = trainer.train(received, records, how)
    expected = full_batch_steps(model, received, records, how)
    np.testing.assert_allclose(got.change.flat, expected, atol=1e-5)
    assert got.ran == how.mechanism


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("is_private", [False, True])
def test_a_proximal_term_is_added_to_the_gradient(base, optimizer, is_private):
    model, _, trainer = setting(base)
    received, anchor, records = some_adapter(model), some_adapter(model, 1), some_records(9)
    how = replace(PLAIN, batch_size=9, optimizer=optimizer, learning_rate=0.01, proximal=3.0)
    asked = how
    if is_private:
        asked = replace(dp(how, noise=1e-9, rate=1.0), max_grad_norm=100.0)
    for place in (None, anchor):
        got = trainer.train(received, records, asked, anchor=place)
        expected = full_batch_steps(model, received, records, how, place)
        np.testing.assert_allclose(got.change.flat, expected, atol=1e-4)
    free = trainer.train(received, records, replace(asked, proximal=0.0))
    assert not np.allclose(free.change.flat, got.change.flat, atol=1e-3)


def test_a_proximal_term_is_neither_clipped_nor_noised_nor_divided(base):
    """It holds no data: what a record may move is as it is without."""
    model, _, trainer = setting(base)
    received, anchor, records = some_adapter(model), some_adapter(model, 1), some_records(9)
    how = replace(dp(PLAIN, noise=2.0, rate=0.5), max_grad_norm=1e-3)
    how = replace(how, steps=1, mechanism=replace(how.mechanism, steps=1))
    free = trainer.train(received, records, how, seeded())
    pulled = trainer.train(received, records, replace(how, proximal=3.0), seeded(), anchor)
    pull = -how.learning_rate * 3.0 * (received.flat - anchor.flat)
    np.testing.assert_allclose(pulled.change.flat - free.change.flat, pull, atol=1e-6)


def test_plain_batches_have_the_size_asked_for(base):
    model, task, trainer = setting(base)
    trainer.train(some_adapter(model), some_records(10), PLAIN)
    assert sum(task.records) == PLAIN.steps * PLAIN.batch_size


def test_private_batches_are_poisson(base):
    model, task, trainer = setting(base)
    how = dp(replace(PLAIN, steps=60), rate=0.3)
    sizes = []
    for seed in range(4):
        task.records.clear()
        trainer.train(some_adapter(model), some_records(10), how, seeded(seed))
        sizes.append(sum(task.records))
    expected, std = 60 * 3, (60 * 10 * 0.3 * 0.7) ** 0.5
    assert len(set(sizes)) > 1
    assert all(abs(size - expected) < 5 * std for size in sizes)


def test_steps_without_a_record_count_and_are_noised(base):
    model, task, trainer = setting(base)
    how = dp(PLAIN, rate=1e-9, noise=2.0)
    got = trainer.train(some_adapter(model), some_records(10), how, seeded())
    assert task.records == []
    assert (got.steps, got.ran) == (3, how.mechanism)
    std = 2.0 * how.max_grad_norm / how.batch_size * how.learning_rate * 3**0.5
    assert abs(got.change.flat.std() / std - 1) < 0.1


def test_the_sum_is_divided_by_the_agreed_batch_size(base):
    model, _, trainer = setting(base)
    received, records = some_adapter(model), some_records(10)
    how = dp(replace(PLAIN, steps=1), noise=1e-9, rate=1.0)
    four, forty = (
        trainer.train(received, records, replace(how, batch_size=size)).change.flat
        for size in (4, 40)
    )
    np.testing.assert_allclose(four, 10 * forty, atol=1e-5)


def test_only_what_the_method_trains_comes_back(base):
    names = {}
    for method in ("fedavg", "ffa-lora"):
        model, _, trainer = setting(base, method=method)
        got = trainer.train(some_adapter(model), some_records(8), dp(PLAIN))
        names[method] = set(got.change.manifest.names)
        assert all(tensor.any() for tensor in got.change.tensors().values())
    assert names["fedavg"] - names["ffa-lora"] == {
        n for n in names["fedavg"] if ".lora_A." in n
    }
    assert any("classifier" in n for n in names["ffa-lora"])


def test_rounds_do_not_know_of_each_other(base):
    model, _, trainer = setting(base)
    received, records = some_adapter(model), some_records(8)
    how = dp(replace(PLAIN, optimizer="adamw"))
    first = trainer.train(received, records, how, seeded())
    model.eval()
    trainer.train(some_adapter(model, seed=5), some_records(6, seed=5), PLAIN)
    again = trainer.train(received, records, how, seeded())
    np.testing.assert_array_equal(first.change.flat, again.change.flat)


def test_without_a_generator_no_round_is_like_another(base):
    model, _, trainer = setting(base)
    received, records = some_adapter(model), some_records(8)
    one, other = (trainer.train(received, records, dp(PLAIN)).change for _ in range(2))
    assert not np.allclose(one.flat, other.flat)


def test_the_size_of_micro_batches_changes_nothing(base):
    model, task, trainer = setting(base)
    received, records = some_adapter(model), some_records(12)
    one, other = (
        trainer.train(received, records, replace(dp(PLAIN), max_tokens=n), seeded()).change
        for n in (4096, 12)
    )
    assert min(task.records) == 1
    np.testing.assert_allclose(one.flat, other.flat, atol=1e-5)


def test_bf16_trains_nearly_the_same(base):
    model, _, trainer = setting(base)
    received, records = some_adapter(model), some_records(12)
    how = dp(PLAIN, noise=1e-9, rate=1.0)
    exact = trainer.train(received, records, how).change
    rough = trainer.train(received, records, replace(how, precision="bf16")).change
    difference = np.linalg.norm(exact.flat - rough.flat) / exact.norm
    assert 1e-4 < difference < 0.1
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_evaluation_measures_the_adapter_given_and_goes_back_to_training(base):
    model, _, trainer = setting(base)
    records, received = some_records(20), some_adapter(model)
    before = trainer.evaluate(received, records)
    how = replace(PLAIN, steps=40, batch_size=20, learning_rate=0.5)
    change = trainer.train(received, records, how).change
    assert trainer.evaluate(received, records) == before
    after = trainer.evaluate(received.plus(change), records)
    assert after.loss < before.loss
    assert 0 <= before.score <= after.score <= 1
    assert model.training


def test_only_without_noise_may_training_change_nothing(base, monkeypatch):
    model, task, trainer = setting(base)
    loss = task.loss
    task.loss = lambda model, batch: (0 * loss(model, batch)[0], None)  # all is fitted
    fitted = trainer.train(some_adapter(model), some_records(8), PLAIN)
    assert not fitted.change.flat.any()
    assert not trainer.train(
        some_adapter(model), some_records(8), replace(PLAIN, steps=0)
    ).change.flat.any()
    assert trainer.train(some_adapter(model), some_records(8), PRIVATE).change.flat.any()
    monkeypatch.setattr(dpsgd, "standard_normal", lambda shape, rng: torch.zeros(shape))
    with pytest.raises(TrainingError, match="changed nothing"):
        trainer.train(some_adapter(model), some_records(8), PRIVATE)


def test_training_that_diverges_is_an_error(base):
    model, _, trainer = setting(base)
    with pytest.raises(TrainingError, match="finite"):
        trainer.train(some_adapter(model), some_records(8), replace(PLAIN, learning_rate=1e30))


def out_of_memory(kind):
    match kind:
        case "cpu":
            torch.empty(10**15)
        case "numpy":
            np.empty(10**18)
        case "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("kind", ["cpu", "numpy", "gpu"])
def test_memory_that_is_not_there_is_an_error_and_leaves_nothing_behind(base, kind):
    model, task, trainer = setting(base)
    received, records = some_adapter(model), some_records(8)
    expected = trainer.train(received, records, PLAIN, np.random.default_rng(0))
    loss = task.loss

    def second_micro_batch_fails(model, batch):
        if len(task.records) > before:
            out_of_memory(kind)
        return loss(model, batch)

    before, task.loss = len(task.records), second_micro_batch_fails
    with pytest.raises(TrainingError, match="not enough memory") as raised:
        trainer.train(received, records, replace(PLAIN, max_tokens=1))
    assert raised.value.advice
    with pytest.raises(TrainingError, match="not enough memory"):
        trainer.evaluate(received, records)
    task.loss = loss
    after = trainer.train(received, records, PLAIN, np.random.default_rng(0))
    assert after.change.digest == expected.change.digest


def test_another_error_of_torch_is_not_taken_for_a_lack_of_memory(base):
    model, task, trainer = setting(base)

    def failing(_model, _batch):
        raise RuntimeError("shapes cannot be multiplied")

    task.loss = failing
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.train(some_adapter(model), some_records(8), PLAIN)


def test_what_does_not_fit_is_refused(base):
    model, task, trainer = setting(base)
    received = some_adapter(model)
    with pytest.raises(DataError):
        trainer.train(received, some_records(0), PLAIN)
    with pytest.raises(ModelError):
        trainer.train(received.select(received.manifest.names[1:]), some_records(8), PLAIN)
    with pytest.raises(TrainingError, match="not on"):
        Trainer(model, task, pad_id=0, device=torch.device("meta"))
    model.requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="Nothing"):
        Trainer(model, task, pad_id=0, device=CPU)


def test_a_study_says_how_to_train(base):
    mechanism = SubsampledGaussian(1.5, 0.1, 3)
    study = study_on(base, mechanism="dp-sgd")
    how = LocalTraining.from_study(study, "Clinic", mechanism, CPU)
    assert how.mechanism == mechanism
    assert (how.steps, how.batch_size, how.max_grad_norm) == (3, 4, 1.0)
    assert (how.optimizer, how.learning_rate, how.precision) == ("adamw", 1e-3, "fp32")
    # A batch cannot be expected to hold more records than there are.
    assert LocalTraining.from_study(study, "Practice", mechanism, CPU).batch_size == 3


def test_a_private_study_is_never_trained_without_noise(base):
    with pytest.raises(TrainingError):
        LocalTraining.from_study(study_on(base, mechanism="dp-sgd"), "Clinic", None, CPU)
    with pytest.raises(TrainingError):
        LocalTraining.from_study(study_on(base), "Clinic", SubsampledGaussian(1.0, 0.1, 3), CPU)
    with pytest.raises(ValueError, match="steps"):
        LocalTraining(
            steps=2,
            batch_size=4,
            learning_rate=0.1,
            mechanism=SubsampledGaussian(1.0, 0.1, 3),
        )
