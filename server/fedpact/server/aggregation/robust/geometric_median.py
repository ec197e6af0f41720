r"""The geometric median (RFA, Pillutla et al. 2022): the point nearest to all updates together.

$\Delta = \arg\min_z \sum_k \lVert z - \Delta_k \rVert$, by the smoothed Weiszfeld algorithm:
$z \leftarrow \sum_k \beta_k \Delta_k / \sum_k \beta_k$ with $\beta_k = 1 / \max(\nu, \lVert z -
\Delta_k \rVert)$, from the median of every
coordinate on, until it moves no more. Bears f of n sites where n ≥ 2f + 1,
and does not change with the basis, as the coordinate-wise rules do.
"""

import numpy as np

from fedpact.server.aggregation.robust import KeepingRule, Updates, Vector, distances

_STEPS = 1000
_STILL = 1e-9


class Rule(KeepingRule):
    """The geometric median."""

    def combine(self, updates: Updates) -> Vector:
        """The point of the least sum of distances."""
        # The median of all coordinates: the mean may be so far out that sums lose the rest.
        point = np.asarray(np.median(updates, axis=0))
        scale = float(np.median(distances(updates, point)))
        if scale == 0:  # at least half of the updates are this very point
            return point
        smallest = scale * 1e-9
        for _ in range(_STEPS):
            shares = 1 / np.maximum(distances(updates, point), smallest)
            moved = shares @ updates / shares.sum()
            if np.linalg.norm(moved - point) <= _STILL * scale:
                return np.asarray(moved)
            point = moved
        return point
