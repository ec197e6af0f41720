r"""RoLoRA (Chen et al., NeurIPS 2025): B is trained in odd rounds, A in even ones.

In each round one factor is the same at every site, so averaging the other is exact:
$\sum_k p_k B_k A = \bar B A$, then $\sum_k p_k B A_k = B \bar A$. Noise on the one that is
trained enters the product linearly. B comes first: it starts at zero, and while it is zero,
nothing that A does can be learned from. Which tensors a round trains is `Study.trains`;
their mean is FedAvg's.
"""

from fedpact.server.aggregation.fedavg import Round

__all__ = ["Round"]
