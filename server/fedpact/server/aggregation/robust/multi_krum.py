r"""Multi-Krum: the mean of the m = n - f - 2 updates of the least Krum score.

Blanchard et al. (NeurIPS 2017), with the m of El Mhamdi et al. (2019). f is `bad_sites`. Bears
f of n sites where n ≥ 2f + 3, and averages out more of the honest sites' noise than `krum`.
"""

import numpy as np

from fedpact.server.aggregation.robust import KeepingRule, Updates, Vector
from fedpact.server.aggregation.robust.krum import scores


class Rule(KeepingRule):
    """Multi-Krum."""

    def combine(self, updates: Updates) -> Vector:
        """The mean of the updates of the least scores."""
        kept = len(updates) - self._how.bad_sites - 2
        order = np.argsort(scores(updates, self._how.bad_sites), kind="stable")
        return np.asarray(updates[order[:kept]].mean(axis=0))
