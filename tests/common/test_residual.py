"""What was added to the frozen weights: in the resident model, on disk, and what does not fit."""

import numpy as np
import peft
import pytest
import torch

from fedpact.common import model as models
from fedpact.common import tasks
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import ModelError

CPU = torch.device("cpu")
BATCH = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]])}
WIDTH = 32


@pytest.fixture(scope="module")
def study(tiny):
    # A scale that no whole alpha has at every rank.
    return tiny.study(adapter={"r": 3, "lora_alpha": 4}, aggregation={"method": "flora"})


@pytest.fixture(scope="module")
def model(study):
    return models.build(study, CPU).eval()


def drawn(model, seed: int, residual: int = 5) -> Weights:
    """An adapter of random values, with residuals of a rank, one more from layer to layer."""
    rng = np.random.default_rng(seed)
    tensors = models.get_adapter(model).tensors()
    for n, (b, _) in enumerate(models.get_adapter(model).manifest.pairs() if residual else ()):
        tensors[b.replace("lora_B", "residual_A")] = np.zeros((residual + n, WIDTH))
        tensors[b.replace("lora_B", "residual_B")] = np.zeros((WIDTH, residual + n))
    return Weights.from_tensors(
        {name: rng.normal(0, 0.2, value.shape) for name, value in tensors.items()}
    )


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


def test_the_layer_is_the_base_models_weight_and_both_products_at_the_studys_scale(
    study, model
):
    weights = drawn(model, 0)
    models.set_adapter(model, weights)
    tensors, scale = weights.tensors(), study.adapter.lora_alpha / study.adapter.r
    task = tasks.for_study(study)
    plain = task.model_class().from_pretrained(study.model.base, **task.model_config())
    layers = dict(plain.named_modules())
    with torch.no_grad():
        for b, a in weights.manifest.pairs():
            added = sum(
                tensors[b.replace("lora", kind)] @ tensors[a.replace("lora", kind)]
                for kind in ("lora", "residual")
            )
            name = b.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            layers[name].weight += scale * torch.from_numpy(added)
        plain.classifier.weight.copy_(
            torch.from_numpy(tensors["base_model.model.classifier.weight"])
        )
        plain.classifier.bias.copy_(
            torch.from_numpy(tensors["base_model.model.classifier.bias"])
        )
        wanted = plain.eval()(**BATCH).logits
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)


def test_without_it_the_base_model_is_as_it_was_to_the_bit(model):
    alone = drawn(model, 1, residual=0)
    models.set_adapter(model, alone)
    before = logits(model)
    models.set_adapter(model, drawn(model, 2))
    assert not torch.allclose(logits(model), before)
    models.set_adapter(model, drawn(model, 3))  # another takes the place of the first
    models.set_adapter(model, alone)
    assert torch.equal(logits(model), before)


def test_what_is_saved_is_one_adapter_of_a_higher_rank_that_peft_loads(study, model, tmp_path):
    weights = drawn(model, 4)
    models.set_adapter(model, weights)
    models.save_peft(tmp_path, weights, study)
    task = tasks.for_study(study)
    base = task.model_class().from_pretrained(study.model.base, **task.model_config())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["half", "unlike", "wide", "too many", "nowhere"])
def test_a_residual_that_fits_no_layer_is_refused_and_changes_nothing(model, how):
    good = drawn(model, 5)
    tensors = good.tensors()
    b, a = good.manifest.residual[1], good.manifest.residual[0]
    assert b.endswith("residual_B.weight")
    match how:
        case "half":
            del tensors[a]
        case "unlike":
            tensors[a] = tensors[a][1:]
        case "wide":
            tensors[a] = tensors[a][:, 1:]
        case "too many":
            tensors[a] = np.zeros((WIDTH + 1, WIDTH))
            tensors[b] = np.zeros((WIDTH, WIDTH + 1))
        case "nowhere":
            tensors[f"other.{a}"], tensors[f"other.{b}"] = tensors.pop(a), tensors.pop(b)
    models.set_adapter(model, good)
    before = logits(model)
    with pytest.raises(ModelError, match="does not fit"):
        models.set_adapter(model, Weights.from_tensors(tensors))
    assert torch.equal(logits(model), before)


def test_another_rank_keeps_scale_and_what_is_trained(study):
    model = models.build(study, CPU).eval()
    models.set_trained(model, study, 1)
    whole = drawn(model, 6)
    for rank in (1, 3, 2):
        models.set_rank(model, rank)
        weights = whole.of_rank(rank)
        models.set_adapter(model, weights)
        assert models.get_adapter(model, trainable=True).manifest == weights.manifest.select(
            set(weights.manifest.names) - set(weights.manifest.residual)
        )
        narrow = logits(model)
        # The same with zeros in the place of the other components.
        tensors = whole.tensors()
        for b, _ in whole.manifest.pairs():
            tensors[b] = np.where(np.arange(3) < rank, tensors[b], 0)
        models.set_rank(model, 3)
        models.set_adapter(model, Weights.from_tensors(tensors))
        torch.testing.assert_close(logits(model), narrow, rtol=1e-5, atol=1e-5)


def test_components_are_cut_from_the_end():
    manifest = Manifest(("x.lora_A.weight", "x.lora_B.weight", "head"), ((3, 5), (4, 3), (3,)))
    weights = Weights(manifest, np.arange(30, dtype=np.float32))
    cut = weights.of_rank(2).tensors()
    np.testing.assert_array_equal(cut["x.lora_A.weight"], np.arange(10).reshape(2, 5))
    np.testing.assert_array_equal(cut["x.lora_B.weight"][:, 1], [16, 19, 22, 25])
    np.testing.assert_array_equal(cut["head"], [27, 28, 29])
    assert weights.of_rank(3) is weights.of_rank(7) is weights
