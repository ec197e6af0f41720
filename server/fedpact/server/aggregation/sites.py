"""What each site came to have, kept for the methods that need all sites' factors at once.

A site whose rank is below the adapter's was sent the first components of A and B, and trained
those: which they are, the shape of its change says.
"""

from collections.abc import Iterable

import numpy as np

from fedpact.common.adapter import Manifest, Weights
from fedpact.server.aggregation.factors import Pair
from fedpact.server.aggregation.rules import Rule


class Sites:
    """One round's sites; what is of no LoRA pair goes through the rule.

    Args:
        before: the adapter before the round.
        rule: makes one change of those of the tensors that are of no LoRA pair.
    """

    def __init__(self, before: Weights, rule: Rule) -> None:
        self._before = before
        self._rule = rule
        self._factors = _names(before.manifest)
        self._sites: list[Weights] = []
        self._weights: list[float] = []

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change, and keep what it came to have."""
        rest = [name for name in change.manifest.names if name not in self._factors]
        self._rule.add(change.select(rest), weight)
        self._sites.append(at_site(self._before, change))
        self._weights.append(weight)

    def _averaged(self) -> Weights:
        """The adapter with the rule's change in all that is of no LoRA pair.

        Raises:
            RunError: nothing was added.
        """
        return self._before.plus(self._rule.result())

    @property
    def _shares(self) -> list[float]:
        """Each site's declared size over the sum of all."""
        total = sum(self._weights)
        return [weight / total for weight in self._weights]

    def _pairs(self, b: str, a: str) -> list[Pair]:
        """One layer's B and A at every site."""
        sites = [site.tensors() for site in self._sites]
        return [(site[b], site[a]) for site in sites]


def at_site(before: Weights, change: Weights) -> Weights:
    """The LoRA factors that a site came to have, of the rank of its change."""
    names = _names(before.manifest)
    changed = change.select(names & set(change.manifest.names))
    ranks = [len(value) for name, value in changed.tensors().items() if ".lora_A." in name]
    sent = before.select(names)
    return (sent.of_rank(ranks[0]) if ranks else sent).plus(changed)


def padded(weights: Weights, manifest: Manifest) -> Weights:
    """The same with zeros up to the shapes of a manifest that has the same names."""
    if weights.manifest == manifest:
        return weights
    shapes = dict(zip(manifest.names, manifest.shapes, strict=True))
    whole = {}
    for name, value in weights.tensors().items():
        whole[name] = np.zeros(shapes[name], dtype=np.float32)
        whole[name][tuple(map(slice, value.shape))] = value
    return Weights.from_tensors(whole)


def _names(manifest: Manifest) -> set[str]:
    pairs: Iterable[tuple[str, str]] = manifest.pairs()
    return {name for pair in pairs for name in pair}
