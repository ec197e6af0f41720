"""Random models of other families, as small as the BERT, for the tasks that need them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fedpact.common.base_models import file_digest
from support.tiny_bert import TinyBert

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_KEPT: list[TemporaryDirectory] = []  # until the process ends
_NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class OtherBase(TinyBert):
    """A base model of another family, and the layers of it that LoRA adapts."""

    target_modules: tuple[str, ...]

    def document(self, **sections: dict) -> dict:
        """A study file's content, with the layers of this family."""
        document = super().document(**sections)
        document["adapter"]["target_modules"] = list(self.target_modules)
        return document


def other_base(task: str, tiny: TinyBert) -> TinyBert:
    """The base model for a task: the BERT, or one that was made when first asked for."""
    return _made(task, tiny.folder) if task in _MAKERS else tiny


@cache
def _made(task: str, tokenizer: Path) -> OtherBase:
    make, target_modules = _MAKERS[task]
    _KEPT.append(kept := TemporaryDirectory(prefix="fedpact-tiny-"))
    folder = Path(kept.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make(folder, tokenizer)
    return OtherBase(folder, file_digest(folder / "model.safetensors"), target_modules)


def _with_tokenizer(folder: Path, tokenizer: Path) -> None:
    for name in _TOKENIZER:
        copy(tokenizer / name, folder)


def _gpt2(folder: Path, tokenizer: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 64}
    config = GPT2Config(**sizes, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    _with_tokenizer(folder, tokenizer)


def _t5(folder: Path, tokenizer: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = T5Config(**sizes, vocab_size=64, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    _with_tokenizer(folder, tokenizer)


def _vit(folder: Path, _tokenizer: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    config = ViTConfig(**_NARROW, intermediate_size=32, image_size=16, patch_size=8)
    config.initializer_range = 0.2
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def _wav2vec2(folder: Path, norm: str) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = Wav2Vec2Config(
        **_NARROW,
        intermediate_size=32,
        classifier_proj_size=16,
        feat_extract_norm=norm,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 4),
        conv_stride=(10, 8, 4),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=norm == "layer",
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)


_MAKERS: dict[str, tuple[Callable[[Path, Path], Any], tuple[str, ...]]] = {
    "causal-language-modelling": (_gpt2, ("c_attn",)),
    "sequence-to-sequence": (_t5, ("q", "v")),
    "image-classification": (_vit, ("q_proj", "v_proj")),
    "audio-classification": (
        lambda folder, _: _wav2vec2(folder, "group"),
        ("q_proj", "v_proj"),
    ),
    "audio-classification layer": (
        lambda folder, _: _wav2vec2(folder, "layer"),
        ("q_proj", "v_proj"),
    ),
}
