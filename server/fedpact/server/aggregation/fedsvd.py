r"""FedSVD (Lee et al., NeurIPS 2025): B is averaged, then B and A are refactored together.

Sites train B with A shared, so that $\bar B = \sum_k p_k B_k$ is exact. The coordinator then
takes $U \Sigma V^\top = \mathrm{SVD}(\bar B A)$ and sends on

$$B' = U_r \Sigma_r, \qquad A' = V_r^\top .$$

The product has rank r at most, so nothing is lost: $B'A' = \bar B A$. A' has orthonormal rows
and is computed from what has left the sites already: it moves, and no noise is added for it.

Two things follow from the equations. The rows of A' span the same space as those of A: what
changes is their basis, never the directions that the adapter can learn. And a step of SGD on
B, clipped and noised as in DP-SGD, does not depend on which orthonormal basis it is: there
FedSVD walks the path of `ffa_lora` with an orthonormal A. It is with optimisers that treat
each coordinate by itself, as AdamW does, that the basis matters.
"""

from fedpact.common.adapter import Weights
from fedpact.server.aggregation import fedavg
from fedpact.server.aggregation.factors import compress, with_tensors


class Round(fedavg.Round):
    """One round of FedSVD."""

    def result(self) -> Weights:
        """The adapter after the round, each pair refactored.

        Raises:
            RunError: nothing was added.
        """
        mean = super().result()
        tensors, refactored = mean.tensors(), {}
        for b, a in mean.manifest.pairs():
            rank = tensors[a].shape[0]
            refactored[b], refactored[a] = compress([(tensors[b], tensors[a])], rank)
        return with_tensors(mean, refactored)
