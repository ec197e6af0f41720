"""What tasks that write text have in common: a loss and a score of each record's tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedpact.common.records import Column

# What the loss passes over, by torch's own default.
NOTHING = -100


def targets(rows: Sequence[Sequence[int]]) -> Column:
    """Tokens that a model should write, for a batch."""
    return Column.of_rows(rows, np.int32, NOTHING)


def of_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of each record's tokens, and what else is measured of them.

    Args:
        logits: shape [n, t, vocabulary].
        labels: tokens that should be written, or `NOTHING`, shape [n, t].

    Returns:
        losses, shape [n]; of each record the sum of its tokens' losses, how many of them were
        the likeliest, and how many there are, shape [n, 3]. Both in fp32.
    """
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=NOTHING, reduction="none"
    ).sum(dim=1)
    is_there = labels != NOTHING
    right = ((logits.argmax(dim=2) == labels) & is_there).sum(dim=1)
    count = is_there.sum(dim=1)
    seen = torch.stack([losses.detach(), right.to(losses), count.to(losses)], dim=1)
    return losses / count.clamp(min=1), seen


class WritesText:
    """Scores and metrics of what `of_tokens` gives."""

    def score(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The share of a record's tokens that were the likeliest, shape [n]."""
        del batch
        return output[:, 1] / output[:, 2].clamp(min=1)

    def observe(self, output: Tensor, batch: Mapping[str, Tensor]) -> Sequence[object]:
        """Loss and number of each record's tokens."""
        del batch
        return output[:, [0, 2]].tolist()

    def metrics(self, seen: Sequence[Any]) -> dict[str, float]:
        """Perplexity: of all tokens of all records alike."""
        loss, count = np.asarray(seen, dtype=float).sum(axis=0)
        return {"perplexity": float(np.exp(loss / max(count, 1)))}
