r"""The weighted mean: $\Delta = \sum_k p_k \Delta_k$ with $p_k = n_k / \sum_j n_j$.

It bears no bad site at all: one that sends a large enough change sends the mean anywhere.
"""

import numpy as np

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import RunError


class Mean:
    """A running weighted sum in float64: two float32 updates' worth of memory, ever."""

    def __init__(self, trained: Manifest) -> None:
        self._manifest = trained
        self._sum = np.zeros(trained.size, dtype=np.float64)
        self._weight = 0.0

    def add(self, change: Weights, weight: float) -> None:
        """Add one site's change."""
        # A Python number times float32 stays float32: the product too must be float64.
        self._sum += np.multiply(change.flat, weight, dtype=np.float64)
        self._weight += weight

    def result(self) -> Weights:
        """The weighted mean of the changes added.

        Raises:
            RunError: nothing was added.
        """
        if self._weight == 0:
            raise RunError("There is no update to aggregate.")
        return Weights(self._manifest, (self._sum / self._weight).astype(np.float32))
