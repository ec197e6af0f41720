r"""Krum (Blanchard et al., NeurIPS 2017): the one update that is nearest to its neighbours.

The score of an update is the sum of the squared distances to its n - f - 2 nearest others,
$s(k) = \sum_{j \in N_k} \lVert \Delta_k - \Delta_j \rVert^2$; the update of the least score is
the result. f is `bad_sites`. Bears f of n sites where n ≥ 2f + 3. It throws away all the other
honest updates, so that their noise does not average out.
"""

import numpy as np

from fedpact.server.aggregation.robust import KeepingRule, Updates, Vector, distances


class Rule(KeepingRule):
    """Krum."""

    def combine(self, updates: Updates) -> Vector:
        """The update of the least score; of several, the one that came first."""
        return np.asarray(updates[np.argmin(scores(updates, self._how.bad_sites))])


def scores(updates: Updates, bad_sites: int) -> Vector:
    """Krum's score of each update, shape [sites]; the least is the best."""
    nearest = len(updates) - bad_sites - 2
    squared = np.stack([distances(updates, one) for one in updates]) ** 2
    # The first of each row is the update's distance to itself.
    return np.asarray(np.sort(squared, axis=1)[:, 1 : 1 + nearest].sum(axis=1))
