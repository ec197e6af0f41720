"""What rules and methods are: a rule makes one change of many, a method the adapter after."""

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


class Method(Protocol):
    """Makes the adapter after a round, of the one before and of the sites' changes."""

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change; `weight` is its declared size."""
        ...

    def result(self) -> Weights:
        """The adapter after the round.

        Raises:
            RunError: nothing was added.
        """
        ...
