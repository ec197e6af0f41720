r"""Norm bounding (Sun et al. 2019): the weighted mean of updates cut to one length.

$\Delta = \sum_k p_k\, \Delta_k \min(1, C / \lVert \Delta_k \rVert)$ with C `norm_bound`. It
tells nobody apart: a bad site moves the result by at most $p_k C$, in any direction it likes.
So it bears any number of sites that are careless, and none, strictly, that are malicious.
Memory does not grow with the number of sites.
"""

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.study_together import Aggregation
from fedpact.server.aggregation.mean import Mean


class Rule:
    """The weighted mean of bounded updates."""

    def __init__(self, trained: Manifest, how: Aggregation) -> None:
        self._mean = Mean(trained)
        self._bound = how.bound

    def add(self, change: Weights, weight: float) -> None:
        """Cut one site's change and add it."""
        norm = change.norm
        if norm > self._bound:
            change = Weights(change.manifest, change.flat * (self._bound / norm))
        self._mean.add(change, weight)

    def result(self) -> Weights:
        """The weighted mean.

        Raises:
            RunError: nothing was added.
        """
        return self._mean.result()
