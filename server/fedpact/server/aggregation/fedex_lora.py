r"""FedEx-LoRA (Singhal et al., ACL 2025): what averaging factors loses goes to the frozen weights.

Sites train A and B. With $\bar B = \sum_k p_k B_k$ and $\bar A = \sum_k p_k A_k$,

$$B' = \bar B, \quad A' = \bar A, \quad
W' = W + \sum_k p_k B_k A_k - \bar B \bar A
   = W + \sum_k p_k (B_k - \bar B)(A_k - \bar A),$$

so that $W' + B'A'$ is the mean of what the sites had, exactly. The right side is what is computed. Its
rank is $(K-1)\,r$ at most.
"""

import numpy as np

from fedpact.common.adapter import FloatArray, Weights
from fedpact.server.aggregation.factors import Matrix, Pair, with_tensors
from fedpact.server.aggregation.residual import with_added
from fedpact.server.aggregation.sites import Sites


class Round(Sites):
    """One round of FedEx-LoRA."""

    def result(self) -> Weights:
        """The adapter after the round, with its residual.

        Raises:
            RunError: nothing was added.
        """
        after, shares = self._averaged(), self._shares
        means: dict[str, Matrix | FloatArray] = {}
        lost: dict[str, tuple[list[Pair], list[float]]] = {}
        for b, a in after.manifest.pairs():
            pairs = self._pairs(b, a)
            means[b] = mean_b = np.tensordot(shares, [pair[0] for pair in pairs], axes=1)
            means[a] = mean_a = np.tensordot(shares, [pair[1] for pair in pairs], axes=1)
            lost[b] = [(one_b - mean_b, one_a - mean_a) for one_b, one_a in pairs], shares
        return with_added(with_tensors(after, means), lost)
