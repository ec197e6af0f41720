r"""FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products, cut to the adapter's rank.

Sites train A and B. The coordinator decomposes $U \Sigma V^\top = \sum_k p_k B_k A_k$ and
sends on its best approximation of rank r, the highest of the sites' ranks,

$$B' = U_r \Sigma_r, \qquad A' = V_r^\top ,$$

so that no product of one site's B with another's A enters, as it does in `fedavg`. What the
mean has beyond rank r is lost. A site of rank $r_k < r$ is sent the first $r_k$ components, which are
its best approximation of that rank. The decomposition is made of the stacked factors. It needs all
of them at once: memory grows by one update a site.
"""

from fedpact.common.adapter import Weights
from fedpact.server.aggregation.factors import compress, with_tensors
from fedpact.server.aggregation.sites import Sites


class Round(Sites):
    """One round of FlexLoRA; what is not of a LoRA pair is averaged."""

    def result(self) -> Weights:
        """The adapter after the round.

        Raises:
            RunError: nothing was added.
        """
        after, shares = self._averaged(), self._shares
        tensors, redistributed = after.tensors(), {}
        for b, a in after.manifest.pairs():
            rank = len(tensors[a])
            redistributed[b], redistributed[a] = compress(self._pairs(b, a), rank, shares)
        return with_tensors(after, redistributed)
