r"""FLoRA (Wang et al., NeurIPS 2024): what sites learned is stacked and added to the frozen weights.

Sites train A and B, of whatever rank $r_k$ each has. The stacked factors are one product,

$$W' = W + [p_1 B_1 \dots p_K B_K]\,[A_1; \dots; A_K] = W + \sum_k p_k B_k A_k,$$

and each round starts anew: $B' = 0$, and A' is drawn as the first A was, from the digest of the
adapter before the round: whoever aggregates again draws the same.
"""

import numpy as np

from fedpact.common.adapter import Weights, first_values
from fedpact.server.aggregation.factors import with_tensors
from fedpact.server.aggregation.residual import with_added
from fedpact.server.aggregation.sites import Sites


class Round(Sites):
    """One round of FLoRA."""

    def result(self) -> Weights:
        """The adapter after the round: new factors, and the residual with the old ones in it.

        Raises:
            RunError: nothing was added.
        """
        after, shares = self._averaged(), self._shares
        pairs = after.manifest.pairs()
        factors = after.manifest.select(name for pair in pairs for name in pair)
        generator = np.random.default_rng(int(self._before.digest, 16))
        anew = with_tensors(after, first_values(factors, generator).tensors())
        return with_added(anew, {b: (self._pairs(b, a), shares) for b, a in pairs})
