"""A BERT small enough to train in milliseconds, with a tokeniser, data and a study for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForPreTraining, BertModel, BertTokenizerFast

from fedpact.common.base_models import file_digest
from fedpact.common.study import Study
from support.site_factory import INSTITUTION

LABELS = ("mild", "severe")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Words of either label, and words that say nothing.
_TELLING = {"mild": ("itch", "yawn", "sneeze"), "severe": ("coma", "shock", "death")}
_NEUTRAL = ("the", "patient", "had", "a", "day", "drug", "dose", "after", "of", "##s")
RECORDS = 120


@dataclass(frozen=True)
class TinyBert:
    """A folder with a base model, and what a study says of it."""

    folder: Path
    sha256: str

    def document(self, **sections: dict) -> dict:
        """A study file's content; `sections` replace single fields."""
        document: dict = {
            "study": {"name": "tiny"},
            "task": {"labels": list(LABELS)},
            "model": {"base": str(self.folder), "sha256": self.sha256},
            "adapter": {"r": 2, "lora_alpha": 4},
            "training": {
                "rounds": 3,
                "local_steps": 2,
                "batch_size": 24,
                "learning_rate": 0.02,
                "max_length": 12,
                "precision": "fp32",
            },
            "privacy": {"target_epsilon": 8.0},
            "institutions": [{"name": INSTITUTION, "sector": "academia", "records": RECORDS}],
        }
        for name, fields in sections.items():
            given = document.get(name, {})
            document[name] = {**given, **fields} if isinstance(given, dict) else fields
        return document

    def study(self, **sections: dict) -> Study:
        """A study on this model, in which `INSTITUTION` takes part."""
        return Study.model_validate(self.document(**sections))

    def write_study(self, path: Path, **sections: dict) -> Path:
        """The same as a file."""
        path.write_text(tomli_w.dumps(self.document(**sections)), encoding="utf-8")
        return path


def make_tiny_bert(folder: Path) -> TinyBert:
    """Save a random BERT of two narrow layers, with the heads of pre-training, and a WordPiece tokeniser with it."""
    words = (*_SPECIAL, *_NEUTRAL, *(word for words in _TELLING.values() for word in words))
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, vocabulary[word]) for word in ("[SEP]", "[CLS]")]
    backend.post_processor = processors.BertProcessing(*ends)
    BertTokenizerFast(tokenizer_object=backend, model_max_length=16).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            # Larger than usual, so that random features tell one word from another.
            initializer_range=0.2,
        )
        base = BertModel(config)
        model = BertForPreTraining(config)
        model.bert = base
        model.tie_weights()
        model.save_pretrained(folder, safe_serialization=True)
    return TinyBert(folder, file_digest(folder / "model.safetensors"))


def some_rows(records: int = RECORDS, seed: int = 0) -> list[tuple[str, str]]:
    """Texts whose words tell their label, with that label."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(records):
        label = LABELS[number % 2]
        neutral = rng.choice(_NEUTRAL[:-1], rng.integers(2, 7))
        telling = rng.choice(_TELLING[label], rng.integers(1, 4))
        rows.append((" ".join(rng.permutation([*neutral, *telling])), label))
    return rows


def write_data(
    path: Path, records: int = RECORDS, seed: int = 0, sites: Sequence[str] = ()
) -> Path:
    """A CSV file with the study's columns; with `sites`, also a column `site` that names them."""
    header, lines = "text,label", []
    for number, row in enumerate(some_rows(records, seed)):
        lines.append(",".join((*row, *([sites[number % len(sites)]] if sites else []))))
    header += ",site" if sites else ""
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path
