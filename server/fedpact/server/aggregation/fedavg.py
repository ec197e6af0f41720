r"""FedAvg (McMahan et al. 2017): the weighted mean of what sites changed.

$W' = W + \sum_k p_k \Delta_k$ with $p_k = n_k / \sum_j n_j$, over every trained tensor. With
LoRA this averages A and B apart (FedIT, Zhang et al. 2024), and mean(B)·mean(A) is not
mean(BA): exact only where one of the two is frozen (`ffa_lora`).
"""

from fedpact.common.adapter import Weights
from fedpact.server.aggregation.rules import Rule


class Round:
    """One round: the adapter before it, and the rule that makes one change of many."""

    def __init__(self, before: Weights, rule: Rule) -> None:
        self._before = before
        self._rule = rule

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change."""
        self._rule.add(change, weight)

    def result(self) -> Weights:
        """The adapter after the round.

        Raises:
            RunError: nothing was added.
        """
        return self._before.plus(self._rule.result())
