"""What tasks on files have in common: an image or a sound, and one of the study's labels."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.errors import DataError
from fedpact.common.records import TARGET, Column, EncodedRecords, person_numbers
from fedpact.common.study import Study
from fedpact.common.tasks import Cell, Rows
from fedpact.common.tasks.text import label_config

INVENTED = 4


@dataclass(frozen=True, kw_only=True)
class LabelledFiles:
    """A task whose model reads the content of a file and tells one of the labels.

    Whoever extends it brings `read`, `invented_files` and `logits`.
    """

    file_column: str
    label_column: str
    labels: tuple[str, ...]
    person_column: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The file's and the label's."""
        return self.file_column, self.label_column

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The file's content."""
        return {self.file_column: "bytes"}

    @property
    def peft_type(self) -> None:
        """PEFT has no name for it."""
        return

    @property
    def misfit(self) -> tuple[str, str]:
        """Labels that are not among the study's."""
        return (
            "labels that the study does not know",
            "The study's [task] labels must name each; no record is left out.",
        )

    def model_config(self) -> dict[str, Any]:
        """Labels by number, as transformers keeps them."""
        return label_config(self.labels)

    def unknown(self, rows: Rows) -> dict[str, int]:
        """Labels that the study does not know, with how often each stands there."""
        return dict(Counter(x for x in rows[self.label_column] if x not in self.labels))

    def strata(self, rows: Rows) -> Sequence[str]:
        """By label."""
        return [str(value) for value in rows[self.label_column]]

    def invented(self) -> Rows:
        """Four files, of different sizes, with the first two labels in turn."""
        labels = [self.labels[number % 2] for number in range(INVENTED)]
        return {self.file_column: self.invented_files(), self.label_column: labels}

    def invented_files(self) -> Sequence[bytes]:
        """The content of four files."""
        raise NotImplementedError

    def encode(self, processor: Any, rows: Rows, max_length: int) -> EncodedRecords:
        """Read the files, and number the labels and persons.

        Raises:
            DataError: a file cannot be read as what it should be.
        """
        name, column, values_per_token = self.read(
            processor, numbered(rows[self.file_column]), max_length
        )
        numbers = {label: number for number, label in enumerate(self.labels)}
        targets = np.array([numbers[x] for x in rows[self.label_column]], dtype=np.int64)
        owners = rows.get(self.person_column) if self.person_column else None
        persons = None if owners is None else person_numbers(owners)
        columns = {name: column, TARGET: Column(targets)}
        return EncodedRecords(columns, persons, values_per_token)

    def read(
        self, processor: Any, files: Iterator[tuple[int, bytes]], max_length: int
    ) -> tuple[str, Column, int]:
        """What the model calls its input, that input, and how many values of it are a token."""
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """What the model says, shape [n, labels], in fp32."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each record, shape [n], and logits, shape [n, labels], in fp32."""
        logits = self.logits(model, batch)
        return functional.cross_entropy(logits, batch[TARGET], reduction="none"), logits

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Whether each record's likeliest label is the right one: 1 or 0, shape [n]."""
        return (output.argmax(dim=1) == batch[TARGET]).float()

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """Nothing: there is no metric but the score."""
        del batch
        return [None] * len(output)

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """None."""
        del seen
        return {}


def fields(study: Study) -> dict[str, Any]:
    """A `LabelledFiles`' fields as a study describes them, but for the file's column."""
    task = study.task
    return {
        "label_column": task.label_column,
        "labels": task.labels,
        "person_column": task.person_column,
    }


def numbered(files: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Files with the numbers that people count records by."""
    return enumerate(files, start=1)


def missing(library: str, what: str) -> DataError:
    """What to raise where a library that reads files is not installed."""
    return DataError(
        f"{what} cannot be read: {library} is not installed here.",
        advice='Install it with `pip install "fedpact[media]"`.',
    )
