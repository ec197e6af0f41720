"""The setting that the training benchmarks share: MiniLM, LoRA r=8, generated records."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpact.common import tasks
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study
from fedpact.common.tasks import Task

CPU = torch.device("cpu")
PAD_ID = 0


def study(method: str = "ffa-lora", **training: Any) -> Study:
    """MiniLM with LoRA r=8 on query and value, two labels, SGD, no dropout, fp32."""
    return Study.model_validate(
        {
            "study": {"name": "benchmark"},
            "task": {"labels": ["negative", "positive"]},
            "model": {"base": "sentence-transformers/all-MiniLM-L6-v2", "pooling": "first"},
            "training": {"precision": "fp32", "optimizer": "sgd", **training},
            "aggregation": {"method": method},
            "privacy": {"mechanism": "none"},
        }
    )


def task() -> Task:
    """Text classification with two labels."""
    return tasks.for_study(study())


def batch(size: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """`size` records of `tokens` random tokens each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1000, 30_000, (size, tokens), generator=generator),
        "attention_mask": torch.ones(size, tokens, dtype=torch.int64),
        "labels": torch.randint(0, 2, (size,), generator=generator),
    }


def records(lengths: np.ndarray[Any, np.dtype[np.int64]], seed: int = 0) -> EncodedRecords:
    """Records of random tokens with the lengths given."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1000, 30_000, length).tolist() for length in lengths]
    return EncodedRecords.from_lists(ids, rng.integers(0, 2, len(lengths)).tolist())
