"""Tasks, one file each, found by the name in `[task]`.

A task knows its model class, its columns, how they become records, how a batch becomes losses,
and what is measured. What is known of it without its code is in `fedpact.common.task_section`.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, Protocol, cast

from torch import Tensor, nn

from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study

Rows = Mapping[str, Sequence[Any]]
# What stands in a column's cells: text; text that may be empty; a list; a JSON object; or a
# file's bytes.
Cell = Literal["text", "maybe", "list", "object", "bytes"]


class Task(Protocol):
    """What a task must know."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a data set must have."""
        ...

    @property
    def cells(self) -> Mapping[str, Cell]:
        """What stands in those columns that are not text."""
        ...

    @property
    def person_column(self) -> str | None:
        """The column that an institution's own data set must have beside them, if any."""
        ...

    @property
    def reads(self) -> Literal["text", "image", "audio"]:
        """What the base model comes with: a tokeniser, image processor or feature extractor."""
        ...

    @property
    def peft_type(self) -> str | None:
        """PEFT's name for the task, `peft.TaskType`; None where it has none."""
        ...

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        ...

    def model_config(self) -> dict[str, Any]:
        """What the model's configuration gets beside the base model's own."""
        ...

    def unknown(self, rows: Rows) -> dict[str, int]:
        """Values that the study does not know, with how often each stands there."""
        ...

    @property
    def misfit(self) -> tuple[str, str]:
        """What such values are called, and what to do about them."""
        ...

    def strata(self, rows: Rows) -> Sequence[str]:
        """By what a simulation may deal records out unevenly: one word a record."""
        ...

    def invented(self) -> Rows:
        """Four records that nobody wrote, of different lengths, for a site's self-test."""
        ...

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Make records of the columns of a data set, and number its persons where they are there."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of each record, shape [n], and what predictions are made of, shape [n, ...].

        Under DP-SGD each loss may depend on its own record alone.
        """
        ...

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """How good each record's prediction is, in [0, 1], shape [n]."""
        ...

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """What `metrics` needs of each record."""
        ...

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """What is measured of all records together, by name."""
        ...


def for_study(study: Study) -> Task:
    """The study's task."""
    module = import_module(f"{__name__}.{study.task.name.replace('-', '_')}")
    return cast("Task", module.from_study(study))
