r"""What is learned beyond the adapter's rank, kept as factors next to the frozen weights.

The frozen weight of a layer in round t is $W_t = W_0 + \frac{\alpha}{r} B_{res} A_{res}$. What a
method adds in a round, $\sum_j w_j B_j A_j$, joins the two factors by stacking and is compressed
without a loss: the rank grows with each round, to $\min(d_{out}, d_{in})$ at most. Until it is there, nothing
of the size $d_{out} \times d_{in}$ is formed. The factors are frozen tensors of the adapter. They go to
every site with it, are part of its digest, and are in what is released.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedpact.common.adapter import LORA_B, RESIDUAL_A, RESIDUAL_B, Weights
from fedpact.server.aggregation.factors import Pair, merge


def with_added(
    weights: Weights, additions: Mapping[str, tuple[Sequence[Pair], Sequence[float]]]
) -> Weights:
    """The adapter with sums of products added to its residual.

    Args:
        weights: with the residual of the rounds before, if there was one.
        additions: by the name of a layer's B, pairs and a weight for each.
    """
    tensors = weights.tensors()
    for name, (pairs, shares) in additions.items():
        b, a = name.replace(LORA_B, RESIDUAL_B), name.replace(LORA_B, RESIDUAL_A)
        before = [(tensors[b], tensors[a])] if b in tensors else []
        merged = merge([*before, *pairs], [*np.ones(len(before)), *shares])
        tensors[b], tensors[a] = (factor.astype(np.float32) for factor in merged)
    return Weights.from_tensors(tensors)
