r"""Central DP (McMahan et al. 2018): each site's update clipped, noise on their mean.

It protects whole institutions, against whoever sees the adapter: other institutions, whoever gets
the release. It does not protect against the coordinator, which has every update as it came; what
does is the noise that sites add themselves. The two promises are apart, with an ε each.

With $w_k = n_k / \max_j n_j \le 1$ over *all* institutions of the study, whether they answered or
not, the change is
$\Delta = (\sum_k w_k \min(1, C / \|\Delta_k\|) \Delta_k + z C \, \mathcal N(0, I)) / \sum_j w_j$.
One institution more or less moves the numerator by at most C, and the denominator is public.

With a target quantile γ the norm C adapts (Andrew et al. 2021, arXiv:1905.03871): after each round
$C \leftarrow C \exp(-\eta (\tilde b - \gamma))$, where $\tilde b$ is the noised share of updates
with a norm of at most C. Counting them spends part of the same noise (their Theorem 1), so that
both together cost what z alone costs.

What a method or a server optimiser makes of the noised mean costs nothing more.
"""

import math
from copy import copy
from typing import Self

import numpy as np

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import RunError
from fedpact.common.randomness import Randomness
from fedpact.common.study import Study

_RATE = 0.2  # η, as in the paper
_COUNT_NOISE = 2.0  # noise of the count over z: leaves 97 % of the privacy to the change


class Clipping:
    """The clipping norm of a run, round after round.

    Args:
        study: one whose `[aggregation] clip_norm` is set.
        rng: for the noise; cryptographic but for tests and simulations.
    """

    def __init__(self, study: Study, rng: Randomness) -> None:
        asked = study.aggregation
        if asked.clip_norm is None:
            raise ValueError("the study does not clip updates")
        sizes = [study.size(institution) for institution in study.institutions]
        self.rng = rng
        self.norm = asked.clip_norm
        self.heaviest = max(sizes)
        self.total = sum(sizes) / self.heaviest
        self.institutions = len(sizes)
        self.quantile = asked.target_quantile
        self._z = asked.noise_multiplier

    @property
    def noise(self) -> float:
        """The noise's standard deviation on the clipped sum."""
        if self.quantile is None or self._z == 0:
            return self._z * self.norm
        return self.norm / math.sqrt(self._z**-2 - (2 * _COUNT_NOISE * self._z) ** -2)

    def held(self) -> Self:
        """The same as it is now, apart from this one, with a norm that does not adapt."""
        held = copy(self)
        held.quantile = None
        return held

    def adapt(self, below: int, came: int) -> None:
        """Move the norm towards the target quantile, where there is one.

        Args:
            below: updates that were not clipped.
            came: all updates.
        """
        if self.quantile is None:
            return
        count = (
            below - came / 2 + _COUNT_NOISE * self._z * float(self.rng.standard_normal(1)[0])
        )
        share = count / self.institutions + 0.5
        self.norm *= math.exp(-_RATE * (share - self.quantile))


class Clipped:
    """The mean of one round: the running sum of clipped changes, in float64."""

    def __init__(self, trained: Manifest, clipping: Clipping) -> None:
        self._manifest = trained
        self._clipping = clipping
        self._sum = np.zeros(trained.size, dtype=np.float64)
        self._below = self._came = 0

    def add(self, change: Weights, weight: float) -> None:
        """Clip one site's change and add it."""
        flat = change.flat.astype(np.float64)
        norm, bound = float(np.linalg.norm(flat)), self._clipping.norm
        factor = 1.0 if norm <= bound else bound / norm
        self._sum += flat * (factor * weight / self._clipping.heaviest)
        self._below += norm <= bound
        self._came += 1

    def result(self) -> Weights:
        """The noised mean of the changes added.

        Raises:
            RunError: nothing was added.
        """
        if self._came == 0:
            raise RunError("There is no update to aggregate.")
        noise = self._clipping.noise
        noised = self._sum
        if noise:
            noised = noised + noise * self._clipping.rng.standard_normal(self._manifest.size)
        self._clipping.adapt(self._below, self._came)
        return Weights(self._manifest, (noised / self._clipping.total).astype(np.float32))
