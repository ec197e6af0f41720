r"""FFA-LoRA (Sun et al., ICLR 2024): A is frozen and shared, B is averaged.

With one A at every site, $\sum_k p_k B_k A = \bar B A$: the mean of the factors is the mean
of the products, exactly, and noise on B enters the product linearly. Which tensors sites
train is decided by the manifest; their mean is FedAvg's.
"""

from fedpact.server.aggregation.fedavg import Round

__all__ = ["Round"]
