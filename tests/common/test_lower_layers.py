"""What lies below the adapter is computed once, and nothing else changes by that."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from fedpact.client.trainer import LocalTraining, Trainer
from fedpact.common import evaluation, lower_layers, tasks
from fedpact.common import model as models
from fedpact.common.errors import ModelError
from fedpact.common.lower_layers import LowerLayers
from fedpact.common.mechanism import SubsampledGaussian
from support.task_studies import encoded, learned
from support.tiny_bert import some_rows

CPU = torch.device("cpu")
STEP = LocalTraining(steps=1, batch_size=24, learning_rate=0.1, optimizer="sgd")
UPPER = {"layers_to_transform": [1]}
TARGETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "deberta-v2": ["query_proj", "value_proj"],
}
HEADS = {
    "distilbert": ["pre_classifier", "classifier"],
    "gpt2": ["score"],
    "deberta-v2": ["pooler", "classifier"],
}
NARROW = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def saved(family, tiny, folder):
    """A random model of a family, with the tiny BERT's tokeniser."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **NARROW)
    AutoModel.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny.folder / name).read_bytes())
    return folder


@pytest.fixture(autouse=True)
def _nothing_remembered():
    lower_layers._STATES.clear()


def study_on(tiny, base, family="bert", **sections):
    adapter = {**UPPER, "target_modules": TARGETS[family]}
    if family in HEADS:
        adapter["modules_to_save"] = HEADS[family]
    model = {"base": str(base), "sha256": None, "pooling": "first"}
    return tiny.study(**{"model": model, "adapter": adapter, **sections})


def texts(study, count=40):
    words, labels = zip(*some_rows(count), strict=True)
    return encoded(study, {"text": list(words), "label": list(labels)})


def scores(model, study, records, lower=None):
    found = evaluation.score(
        model, records, tasks.for_study(study), pad_id=0, device=CPU, lower=lower
    )
    return found.losses


class Counter:
    """How many records have gone through a model's lowest layer."""

    def __init__(self, model):
        self.records = 0
        name = next(name for name, _ in model.named_modules() if name.endswith("layer.0"))
        inner = next(m for m in model.get_submodule(name).modules() if not list(m.children()))
        inner.register_forward_hook(self._count)

    def _count(self, _layer, args, _output):
        self.records += len(args[0])


@pytest.mark.parametrize("family", TARGETS)
def test_every_family_says_what_it_said_before(tiny, tmp_path, family):
    study = study_on(tiny, saved(family, tiny, tmp_path), family)
    model, records = learned(study), texts(study)
    expected = scores(model, study, records, _forgetful(model))
    lower = LowerLayers(model)
    for _ in range(2):
        np.testing.assert_allclose(
            scores(model, study, records, lower), expected, rtol=1e-4, atol=1e-5
        )


def _forgetful(model):
    lower = LowerLayers(model)
    lower._stack = None
    return lower


def test_a_record_goes_through_the_lower_layers_once(tiny):
    study = study_on(tiny, tiny.folder)
    model, records = learned(study), texts(study)
    counter, lower = Counter(model), LowerLayers(model)
    first = scores(model, study, records, lower)
    assert counter.records == len(records)
    np.testing.assert_array_equal(scores(model, study, records, lower), first)
    np.testing.assert_allclose(
        scores(model, study, records.select(np.arange(9)), lower), first[:9], rtol=1e-4
    )
    assert counter.records == len(records) + 9


def test_another_model_of_the_same_base_has_no_need_to_compute_it_again(tiny):
    study = study_on(tiny, tiny.folder)
    records = texts(study)
    first, second = learned(study), learned(tiny.study(adapter={**UPPER, "r": 4}))
    scores(first, study, records)
    counter = Counter(second)
    scores(second, study, records)
    assert counter.records == 0


def test_a_model_with_other_weights_below_computes_them_anew(tiny):
    study = study_on(tiny, tiny.folder)
    records, model = texts(study), learned(study)
    other = learned(study)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    scores(model, study, records)
    expected = scores(other, study, records, _forgetful(other))
    np.testing.assert_allclose(scores(other, study, records), expected, rtol=1e-4, atol=1e-5)


def test_what_was_not_used_for_longest_makes_room(tiny, monkeypatch):
    study = study_on(tiny, tiny.folder)
    model, some, others = learned(study), texts(study), texts(study, 30)
    lower = LowerLayers(model)
    scores(model, study, some, lower)
    held = lower_layers._held()
    monkeypatch.setattr(lower_layers, "_free_memory", lambda _device: 4 * held)
    expected = scores(model, study, others, _forgetful(model))
    for _ in range(2):
        np.testing.assert_allclose(
            scores(model, study, others, lower), expected, rtol=1e-4, atol=1e-5
        )
    assert 0 < lower_layers._held() < held


@pytest.mark.parametrize("mechanism", [None, SubsampledGaussian(1e-9, 0.5, 1)])
def test_training_takes_the_same_steps(tiny, monkeypatch, mechanism):
    study = study_on(tiny, tiny.folder)
    model, records = learned(study), texts(study)
    start, how = models.get_adapter(model), replace(STEP, mechanism=mechanism)
    task = tasks.for_study(study)

    def changes():
        trainer = Trainer(model, task, pad_id=0, device=CPU)
        rng, weights = np.random.default_rng(1), start
        for _ in range(3):
            weights = weights.plus(trainer.train(weights, records, how, rng).change)
        return weights.flat - start.flat

    counter = Counter(model)
    remembering, seen = changes(), counter.records
    lower_layers._STATES.clear()
    monkeypatch.setattr(lower_layers, "_free_memory", lambda _device: 0)
    np.testing.assert_allclose(remembering, changes(), rtol=1e-3, atol=1e-5)
    assert seen <= len(records) < counter.records - seen


def test_bf16_states_give_nearly_the_same(tiny):
    study = study_on(tiny, tiny.folder)
    model, records = learned(study), texts(study)
    with torch.autocast("cpu", torch.bfloat16):
        expected = scores(model, study, records, _forgetful(model))
        found = [scores(model, study, records, LowerLayers(model)) for _ in range(2)]
    for losses in found:
        np.testing.assert_allclose(losses, expected, rtol=0.1, atol=0.05)


def test_nothing_is_remembered_where_a_record_gives_other_states_each_time(tiny):
    study = study_on(tiny, tiny.folder, training={"dropout": True})
    model, records = learned(study), texts(study)
    counter, trainer = (
        Counter(model),
        Trainer(model, tasks.for_study(study), pad_id=0, device=CPU),
    )
    everything = np.arange(len(records))
    for _ in range(2):
        trainer.losses(records, everything, "fp32")
    assert counter.records == 2 * len(records)


def test_what_is_masked_anew_in_each_step_is_not_remembered(tiny):
    study = tiny.study(
        task={"name": "masked-language-modelling", "labels": []},
        adapter={**UPPER, "modules_to_save": []},
    )
    model = learned(study)
    records = encoded(study)
    counter, lower = Counter(model), LowerLayers(model)
    for _ in range(2):
        scores(model, study, records, lower)
    assert counter.records == 2 * len(records)


def test_an_adapter_in_all_layers_remembers_nothing(tiny):
    study = tiny.study(adapter={"layers_to_transform": None})
    model, records = learned(study), texts(study)
    counter, lower = Counter(model), LowerLayers(model)
    for _ in range(2):
        scores(model, study, records, lower)
    assert counter.records == 2 * len(records)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_only_the_layers_named_are_adapted(tiny, pooling):
    study = tiny.study(model={"pooling": pooling}, adapter=UPPER)
    names = models.adapter_parameters(models.build(study, CPU))
    adapted = {name.partition(".layer.")[2][:1] for name in names if ".lora_" in name}
    assert adapted == {"1"}


def test_a_layer_that_is_not_there_is_refused(tiny):
    study = tiny.study(adapter={"layers_to_transform": [1, 2]})
    with pytest.raises(ModelError, match="no layer 2"):
        models.build(study, CPU)
