"""What every rule is that makes one change of many: the mean, and those that bear bad sites."""

from typing import Protocol

from fedpact.common.adapter import Weights


class Rule(Protocol):
    """Makes one change of the changes of a round's sites."""

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change; `weight` is its declared size."""
        ...

    def result(self) -> Weights:
        """The one change.

        Raises:
            RunError: nothing was added.
        """
        ...
