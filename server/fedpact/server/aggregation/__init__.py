"""How updates become one change of the adapter, one file per method.

A method is a class with two calls: `add` takes one site's change with its public weight as
it arrives, `result` gives the change of the adapter. Nothing keeps the updates themselves,
so memory does not grow with the number of sites.
"""

from importlib import import_module
from typing import Protocol, cast

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.study import Study
from fedpact.server.aggregation import clipped


class Aggregator(Protocol):
    """One round's aggregation."""

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change; `weight` is its declared size."""
        ...

    def result(self) -> Weights:
        """The change of the adapter that the round makes."""
        ...


def trained_names(study: Study, names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the adapter's tensors sites train under the study's method."""
    return tuple(filter(study.trains, names))


def for_study(
    study: Study, manifest: Manifest, clipping: clipped.Clipping | None = None
) -> Aggregator:
    """A fresh aggregator for one round of the study's method.

    Args:
        study: whose `[aggregation] method` is taken.
        manifest: the tensors that sites train.
        clipping: the run's, where the study clips updates; every method's mean is then clipped.
    """
    if clipping is not None:
        return clipped.Round(manifest, clipping)
    module = import_module(f"{__name__}.{study.aggregation.method.replace('-', '_')}")
    return cast("Aggregator", module.Round(manifest))
