r"""Centred clipping (Karimireddy et al., ICML 2021): what lies far from a centre is drawn to it.

From a centre $v_0$, three times: $v_{l+1} = v_l + \frac1n \sum_k (\Delta_k - v_l)
\min(1, \tau / \lVert \Delta_k - v_l \rVert)$ with $\tau$ `norm_bound`. The paper starts from the
last round's result. Here the start is the median of every coordinate, so that a round can be
made again of its own updates, and methods that change the basis between rounds can have it.
Bears f of n sites where n ≥ 2f + 1 by that start; each of the three steps then lets a bad site
move the centre by at most $\tau / n$.
"""

import numpy as np

from fedpact.server.aggregation.robust import KeepingRule, Updates, Vector, distances

_STEPS = 3


class Rule(KeepingRule):
    """Centred clipping."""

    def combine(self, updates: Updates) -> Vector:
        """The centre after three steps."""
        centre = np.asarray(np.median(updates, axis=0))
        for _ in range(_STEPS):
            apart = np.maximum(distances(updates, centre), np.finfo(np.float64).tiny)
            shares = np.minimum(1.0, self._how.bound / apart)
            centre = centre + shares @ (updates - centre) / len(updates)
        return centre
