r"""FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products, cut to the adapter's rank.

Sites train A and B. The coordinator decomposes $U \Sigma V^\top = \sum_k p_k B_k A_k$ and
sends on its best approximation of rank r,

$$B' = U_r \Sigma_r, \qquad A' = V_r^\top ,$$

so that no product of one site's B with another's A enters, as it does in `fedavg`. What the
mean has beyond rank r is lost. The decomposition is made of the stacked factors. It needs all
of them at once: memory grows by one update a site.
"""

from fedpact.common.adapter import Weights
from fedpact.server.aggregation import fedavg
from fedpact.server.aggregation.factors import compress, lora_pairs, with_tensors
from fedpact.server.aggregation.rules import Rule


class Round(fedavg.Round):
    """One round of FlexLoRA; what is not of a LoRA pair is averaged."""

    def __init__(self, before: Weights, rule: Rule) -> None:
        super().__init__(before, rule)
        self._changes: list[Weights] = []
        self._weights: list[float] = []

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change, and keep it."""
        super().add(change, weight)
        self._changes.append(change)
        self._weights.append(weight)

    def result(self) -> Weights:
        """The adapter after the round.

        Raises:
            RunError: nothing was added.
        """
        mean = super().result()
        total = sum(self._weights)
        shares = [weight / total for weight in self._weights]
        sites = [self._before.plus(change).tensors() for change in self._changes]
        redistributed = {}
        for b, a in lora_pairs(mean.manifest.names):
            rank = sites[0][a].shape[0]
            pairs = [(site[b], site[a]) for site in sites]
            redistributed[b], redistributed[a] = compress(pairs, rank, shares)
        return with_tensors(mean, redistributed)
