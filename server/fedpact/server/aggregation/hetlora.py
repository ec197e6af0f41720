r"""HetLoRA (Cho et al., EMNLP 2024): factors of unlike ranks, padded with zeros and averaged.

A site of rank $r_k$ is sent the first $r_k$ columns of B and rows of A. What it sends is padded to the
adapter's rank and averaged apart, weighted by how much each site's product holds:

$$B' = \sum_k s_k\,[B_k\;0], \quad A' = \sum_k s_k\,[A_k;\,0], \quad
s_k = \frac{\|\Delta W_k\|_F}{\sum_j \|\Delta W_j\|_F}, \quad \Delta W_k = B_k A_k,$$

with the norm over all layers together. Where all products are zero, $s_k = p_k$. As with `fedavg`, B'A'
is not the mean of the products. The head has the weighted mean by declared sizes.

The paper's sites also prune their own ranks, with a term in their loss that shrinks the last
components. That is left out: ranks here are what the study says, so that everyone knows what is sent.
"""

import numpy as np

from fedpact.common.adapter import FloatArray, Weights
from fedpact.server.aggregation.factors import Matrix, product_norm, with_tensors
from fedpact.server.aggregation.sites import Sites, padded


class Round(Sites):
    """One round of HetLoRA."""

    def result(self) -> Weights:
        """The adapter after the round.

        Raises:
            RunError: nothing was added.
        """
        after = self._averaged()
        pairs, shares = after.manifest.pairs(), self._by_norm()
        factors = after.manifest.select(name for pair in pairs for name in pair)
        sites = [padded(site, factors).tensors() for site in self._sites]
        means: dict[str, Matrix | FloatArray] = {
            name: np.tensordot(shares, [site[name] for site in sites], axes=1)
            for name in factors.names
        }
        return with_tensors(after, means)

    def _by_norm(self) -> list[float]:
        squares = np.zeros(len(self._sites))
        for b, a in self._before.manifest.pairs():
            products = [
                (x.astype(np.float64), y.astype(np.float64)) for x, y in self._pairs(b, a)
            ]
            squares += np.array([product_norm(*product) ** 2 for product in products])
        norms = np.sqrt(squares)
        return [float(norm) for norm in norms / norms.sum()] if norms.any() else self._shares
