r"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): unlike ranks, padded with zeros and averaged.

Taken from the paper:

1. Truncation: a site of rank $r_k$ is sent the first $r_k$ columns of B and rows of A.
2. Zero-padding: what it sends is padded to the adapter's rank.
3. Sparsity-weighted aggregation: A and B are averaged apart, weighted by how much a site's product
   holds. The paper's weight is the norm of the singular values of $\Delta W_k$, which is its
   Frobenius norm; it is that of what the site has, not of what it changed:

$$B' = \sum_k s_k\,[B_k\;0], \quad A' = \sum_k s_k\,[A_k;\,0], \quad
s_k = \frac{\|\Delta W_k\|_F}{\sum_j \|\Delta W_j\|_F}, \quad \Delta W_k = B_k A_k.$$

Where the paper is silent: the norm is over all layers together, so that a site has one weight; where
all products are zero, $s_k = p_k$, the share by declared size; the head has the mean by declared
sizes. As with `fedavg`, B'A' is not the mean of the products.

Left out is rank self-pruning. There a site adds $\lambda \|B_k^{(\gamma r_k:)}\| \|A_k^{(\gamma r_k:)}\|$ to
its loss, over its last $(1 - \gamma) r_k$ components, and drops them for good if that product is
smaller after training than before. Here ranks are part of what was agreed: a site that sent fewer
would be refused, and would tell by its rank something of its data. Under DP the rank would have to be
chosen from noised factors alone. The term itself depends on no record, so it would cost no ε; but it
is large where the noise is, and the last components would be dropped for that.
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
