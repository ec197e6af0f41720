r"""The median of every coordinate (Yin et al., ICML 2018): $\Delta_j = \mathrm{med}_k\, \Delta_{k,j}$.

Bears f of n sites where n ≥ 2f + 1: every coordinate lies within those of the honest.
"""

import numpy as np

from fedpact.server.aggregation.robust import KeepingRule, Updates, Vector


class Rule(KeepingRule):
    """The coordinate-wise median."""

    def combine(self, updates: Updates) -> Vector:
        """The median over sites."""
        return np.asarray(np.median(updates, axis=0))
