"""Rules that bear bad sites, one file per rule.

Each sees a site's update as a whole: all that the round trains, laid end to end. Never A and
B apart: (BC)(C⁻¹A) is the same adapter for every invertible C, so that what is near in A and
in B says nothing of what is near in BA. Studies may therefore have a rule only with a method
that trains one of the two in a round.

A site has one vote, whatever size it declares (but in `norm_bounding`): else a large enough
size would buy the majority. "Bears f of n" means that with f sites that send whatever they
like, knowing all the others' updates, the result stays within a bound that depends on how far
the honest updates are apart. That bound is not zero. Where honest sites differ much (other
data, or DP noise, which is as large as everything else), a rule bears less, and honest sites
that are few and different may count as bad.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import RunError
from fedpact.common.study_together import Aggregation

Vector = npt.NDArray[np.float64]
Updates = npt.NDArray[np.float64]


class KeepingRule(ABC):
    """A rule that must see all updates at once: memory grows by one update a site.

    Args:
        trained: the tensors that sites train.
        how: the study's `[aggregation]`.
    """

    def __init__(self, trained: Manifest, how: Aggregation) -> None:
        self._manifest = trained
        self._how = how
        self._updates: list[Weights] = []

    def add(self, change: Weights, weight: float) -> None:
        """Keep one site's change; its weight is not used."""
        del weight
        self._updates.append(change)

    def result(self) -> Weights:
        """The one change.

        Raises:
            RunError: there are fewer updates than the rule needs.
        """
        if not self._updates:
            raise RunError("There is no update to aggregate.")
        needed = self._how.updates_needed
        if len(self._updates) < needed:
            raise RunError(
                f"{self._how.robust} needs {needed} updates to bear {self._how.bad_sites} bad "
                f"sites, {len(self._updates)} came.",
                advice="Set [federation] quorum to at least that many.",
            )
        updates = np.stack([change.flat for change in self._updates]).astype(np.float64)
        return Weights(self._manifest, self.combine(updates).astype(np.float32))

    @abstractmethod
    def combine(self, updates: Updates) -> Vector:
        """One change of many: of shape [sites, P] to shape [P]."""


def distances(updates: Updates, point: Vector) -> Vector:
    """L2 distance of each update to a point, shape [sites]."""
    return np.asarray(np.linalg.norm(updates - point, axis=1))
