r"""The trimmed mean (Yin et al., ICML 2018): of every coordinate, without the f at each end.

$\Delta_j = \frac{1}{n - 2f} \sum_{k=f+1}^{n-f} \Delta_{(k),j}$, with $\Delta_{(1),j} \le \dots
\le \Delta_{(n),j}$ and f `bad_sites`. Bears f of n sites where n ≥ 2f + 1.
"""

import numpy as np

from fedpact.server.aggregation.robust import KeepingRule, Updates, Vector


class Rule(KeepingRule):
    """The coordinate-wise trimmed mean."""

    def combine(self, updates: Updates) -> Vector:
        """The mean over sites of what is left of each coordinate."""
        trim = self._how.bad_sites
        return np.asarray(np.sort(updates, axis=0)[trim : len(updates) - trim].mean(axis=0))
