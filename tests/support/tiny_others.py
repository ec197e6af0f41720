"""Random models of other families, as small as the BERT, for the tasks that need them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copy
from tempfile import mkdtemp
from typing import Any

import torch

from fedpact.common.model import file_digest
from support.tiny_bert import TinyBert

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
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
    folder = Path(mkdtemp(prefix="fedpact-tiny-"))
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


_MAKERS: dict[str, tuple[Callable[[Path, Path], Any], tuple[str, ...]]] = {
    "causal-language-modelling": (_gpt2, ("c_attn",)),
    "sequence-to-sequence": (_t5, ("q", "v")),
}
