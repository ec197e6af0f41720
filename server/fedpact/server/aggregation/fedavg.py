r"""FedAvg (McMahan et al. 2017): the weighted mean of what sites changed.

$\Delta = \sum_k p_k \Delta_k$ with $p_k = n_k / \sum_j n_j$, over every trained tensor. With
LoRA this averages A and B apart, and mean(B)·mean(A) is not mean(BA): exact only where one
of the two is frozen (`ffa_lora`).
"""

import numpy as np

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import RunError


class Round:
    """A running weighted sum in float64: two float32 updates' worth of memory, ever."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._sum = np.zeros(manifest.size, dtype=np.float64)
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
