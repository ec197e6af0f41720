"""The server optimiser as a rule: what another rule makes of the changes goes through it."""

from fedpact.common.adapter import Weights
from fedpact.common.server_optimizer import step
from fedpact.common.study_together import Aggregation
from fedpact.server.aggregation.rules import Rule


class Stepped:
    """A rule whose change goes through an optimiser.

    Args:
        rule: what makes one change of many.
        how: which optimiser, and its rates.
        state: what the optimiser remembers; None before the first round.

    Attributes:
        state: what it remembers after the round, for the next one. Tensors that a round does
            not train keep theirs.
    """

    def __init__(self, rule: Rule, how: Aggregation, state: Weights | None) -> None:
        self._rule = rule
        self._how = how
        self.state = state

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change."""
        self._rule.add(change, weight)

    def result(self) -> Weights:
        """The optimiser's step.

        Raises:
            RunError: nothing was added.
        """
        change, self.state = step(self._how, self._rule.result(), self.state)
        return change
