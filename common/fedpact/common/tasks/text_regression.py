"""Text regression: a text, and an amount in the range that the study declares."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedpact.common.study import Study
from fedpact.common.tasks import Rows
from fedpact.common.tasks.text import TextTask, fields

_STRATA = 4


@dataclass(frozen=True, kw_only=True)
class TextRegression(TextTask):
    """The task `text-regression` of a study; the model learns amounts as shares of the range."""

    low: float
    high: float

    @property
    def misfit(self) -> tuple[str, str]:
        """What is not a number in the range."""
        return (
            f"values that are not from {self.low:g} to {self.high:g}",
            "The study's [task] low and high must hold each; no record is left out.",
        )

    def model_config(self) -> dict[str, Any]:
        """One output."""
        return {"num_labels": 1, "problem_type": "regression"}

    def unknown(self, rows: Rows) -> dict[str, int]:
        """Values that are not in the range, with how often each stands there."""
        return dict(Counter(x for x in rows[self.label_column] if not self._holds(x)))

    def _holds(self, cell: str) -> bool:
        try:
            return self.low <= float(cell) <= self.high
        except ValueError:
            return False

    def targets(self, labels: Sequence[str]) -> npt.NDArray[np.float32]:
        """Shares of the range, in [0, 1], shape [N]."""
        values = np.array([float(label) for label in labels])
        return ((values - self.low) / (self.high - self.low)).astype(np.float32)

    def strata(self, rows: Rows) -> Sequence[str]:
        """By quarter of the range."""
        shares = self.targets(rows[self.label_column])
        return [str(min(int(share * _STRATA), _STRATA - 1)) for share in shares]

    def invented_labels(self) -> Sequence[str]:
        """The ends of the range, in turn."""
        return [repr(self.low), repr(self.high)] * 2

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Squared error of each record, shape [n], and shares of the range, shape [n].

        A model that says 0 means the middle of the range: that is where a head at zero starts.
        """
        shares = self.logits(model, batch).squeeze(dim=1) + 0.5
        return (shares - batch["labels"]) ** 2, shares

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """How close each value is: 1 less the error as a share of the range, shape [n]."""
        return 1 - (output.clamp(0, 1) - batch["labels"]).abs()

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """What was said and what is, as shares of the range."""
        return list(zip(output.tolist(), batch["labels"].tolist(), strict=True))

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """Correlation as it is and by rank (0 where all values are one), and the error."""
        from scipy.stats import rankdata

        said, held = np.asarray(seen, dtype=float).T
        return {
            "pearson": _correlation(said, held),
            "spearman": _correlation(rankdata(said), rankdata(held)),
            "rmse": float(np.sqrt(np.mean((said - held) ** 2)) * (self.high - self.low)),
        }


def _correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def from_study(study: Study) -> TextRegression:
    """The task as a study describes it.

    Raises:
        ValueError: it names no range, which a valid study does.
    """
    low, high = study.task.low, study.task.high
    if low is None or high is None:
        raise ValueError("a regression without a range")
    return TextRegression(**fields(study), low=low, high=high)
