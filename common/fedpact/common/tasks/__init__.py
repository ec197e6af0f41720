"""Tasks, one file each, found by the name in `[task]`.

A task knows its model class, its columns, how text becomes records, how a batch becomes
losses, and what is measured.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study


class Task(Protocol):
    """What a task must know."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a data set must have."""
        ...

    @property
    def person_column(self) -> str | None:
        """The column that an institution's own data set must have beside them, if any."""
        ...

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        ...

    def model_config(self) -> dict[str, Any]:
        """What the model's configuration gets beside the base model's own."""
        ...

    def unknown(self, rows: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Values that the study does not know, with how often each stands there."""
        ...

    def encode(
        self, tokenizer: Any, rows: Mapping[str, Sequence[str]], max_length: int
    ) -> EncodedRecords:
        """Tokenise the columns of a data set, and number its persons where they are there."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of each record, shape [n], and logits, shape [n, labels]."""
        ...

    def correct(
        self, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Whether each record's prediction is right, shape [n]."""
        ...


def for_study(study: Study) -> Task:
    """The study's task."""
    module = import_module(f"{__name__}.{study.task.name.replace('-', '_')}")
    return cast("Task", module.from_study(study))
