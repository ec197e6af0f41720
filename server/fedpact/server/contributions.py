r"""What each site's update was worth in a round: how much worse the round is without it.

For each site the round is aggregated once more of all other updates, by the same method, rule and
server optimiser, which renormalise the weights as they always do. Of these adapters $W_{-k}$ and the
round's own $W$, measured on the public test set, site k contributed

$$s(W) - s(W_{-k}) \quad\text{to the score, and}\quad \ell(W_{-k}) - \ell(W)
\quad\text{to the loss},$$

both positive where its update helped. They do not add up to what the round gained: what two sites
both know, neither is missed for.

All of it is a function of updates that have left the sites and of public records: it costs no
privacy of what the sites promise. Nothing of the run changes: whatever has a state is copied, and
no chance is drawn.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedpact.common.adapter import Weights
from fedpact.common.evaluation import Metrics
from fedpact.common.study import Study
from fedpact.server import aggregation
from fedpact.server.aggregation import Standing
from fedpact.server.aggregation.clipped import Clipping


@dataclass(frozen=True)
class Contribution:
    """What one update was worth; None where what was measured is no finite number.

    Attributes:
        score: the round's score less its score without the update.
        loss: the round's loss without the update less its loss.
    """

    score: float | None
    loss: float | None


class LeaveOneOut:
    """One round without each of its sites; keeps all its updates.

    Args:
        study: whose `[aggregation]` is taken.
        before: what the run had come to before the round.
        number: of the round, from 1.
        clipping: the run's as the round begins, if it clips updates; it is not moved.
    """

    def __init__(
        self, study: Study, before: Standing, number: int, clipping: Clipping | None = None
    ) -> None:
        self._study = study
        self._before = before
        self._number = number
        self._clipping = clipping and clipping.held()
        self._updates: list[tuple[str, Weights, float]] = []

    def add(self, institution: str, change: Weights, weight: float) -> None:
        """Take one site's change; `weight` is its declared size."""
        self._updates.append((institution, change, weight))

    def adapters(self) -> Iterator[tuple[str, Weights]]:
        """Each institution, and the adapter that the round would have made without it.

        One at a time. There are none where the others would be too few: of a single update, or
        of as many as a robust rule needs.
        """
        if len(self._updates) <= self._study.aggregation.updates_needed:
            return
        for institution, _, _ in self._updates:
            others = aggregation.Round(self._study, self._before, self._number, self._clipping)
            for name, change, weight in self._updates:
                if name != institution:
                    others.add(change, weight)
            yield institution, others.result().adapter

    def contributions(
        self, whole: Metrics, measure: Callable[[Weights], Metrics]
    ) -> dict[str, Contribution]:
        """What each update was worth, by institution.

        Args:
            whole: what was measured of the adapter that the round made.
            measure: measures another, on the same records.
        """
        found = {}
        for institution, adapter in self.adapters():
            without = measure(adapter)
            found[institution] = Contribution(
                _finite(whole.score - without.score), _finite(without.loss - whole.loss)
            )
        return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
