"""Model and data, as both apps need them."""

import csv
import random
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LABELS = ["not serious", "serious"]


def build(base: str) -> nn.Module:
    """The base model with a fresh LoRA adapter and head."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS))
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
    )
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def get_arrays(model: nn.Module) -> ArrayRecord:
    """The adapter's weights as a Flower record."""
    return ArrayRecord(get_peft_model_state_dict(model))


def set_arrays(model: nn.Module, arrays: ArrayRecord) -> None:
    """Put an adapter's weights in."""
    set_peft_model_state_dict(model, arrays.to_torch_state_dict())


def load_batch(file: str, base: str, size: int, max_length: int) -> dict[str, Tensor]:
    """Some of a CSV file's records, tokenised."""
    with Path(file).open(encoding="utf-8", newline="") as lines:
        rows = random.sample(list(csv.DictReader(lines)), size)
    encoded = AutoTokenizer.from_pretrained(base)(
        [row["text"] for row in rows],
        truncation=True,
        max_length=max_length,
        padding=True,
        return_tensors="pt",
    )
    return {**encoded, "labels": torch.tensor([LABELS.index(row["label"]) for row in rows])}
