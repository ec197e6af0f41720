r"""What a round's updates were like: what averaging loses, and whether sites pull one way.

Averaging A and B apart gives $\bar B \bar A$ where the mean of what sites learned is
$\sum_k p_k B_k A_k$. What is lost is how the factors vary together,

$$\sum_k p_k B_k A_k - \bar B \bar A = \sum_k p_k (B_k - \bar B)(A_k - \bar A),$$

nothing where one of the two is the same at all sites. Factors of a lower rank are padded with zeros.
The right side is what is computed: of
stacked factors, never of matrices as large as a layer. All of it is a function of updates that
have left the sites: it costs no privacy, and it changes nothing in the round.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedpact.common.adapter import FloatArray, Manifest, Weights
from fedpact.server.aggregation.factors import Matrix, product_norm, stack
from fedpact.server.aggregation.sites import at_site, padded

# What averaging loses is of all sites' factors at once; a round of more sites goes without.
MOST_SITES = 64


@dataclass(frozen=True)
class Diagnosis:
    """What the updates of a round were like; None where it is not known.

    Attributes:
        averaging_loss: ‖Σp·BA - B̄Ā‖ / ‖Σp·BA‖, Frobenius norms over all LoRA pairs; what
            averaging A and B apart loses, or would have lost. Zero where all products are.
        mean_cosine: mean cosine between the updates of two sites.
    """

    averaging_loss: float | None = None
    mean_cosine: float | None = None


class Examination:
    """Looks at one round's updates; keeps them only where A and B are both trained.

    Args:
        before: the adapter before the round.
        trained: the tensors that sites train.
    """

    def __init__(self, before: Weights, trained: Manifest) -> None:
        self._before = before
        self._trained = trained
        self._names = set(trained.names)
        self._directions = np.zeros(trained.size, dtype=np.float32)
        self._sites = self._moved = 0
        self._changes: list[Weights] = []
        self._weights: list[float] = []

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change; `weight` is its declared size."""
        self._sites += 1
        if norm := change.norm:
            self._directions += padded(change, self._trained).flat * np.float32(1 / norm)
            self._moved += 1
        if self._sites > MOST_SITES:
            self._changes.clear()
        elif self._trains_both():
            self._changes.append(change)
            self._weights.append(weight)

    def result(self) -> Diagnosis:
        """What the updates were like."""
        return Diagnosis(self._averaging_loss(), self._mean_cosine())

    def _mean_cosine(self) -> float | None:
        """Of the sum of directions: its square is K and twice the sum of all cosines."""
        if self._moved <= 1:
            return None
        squared = float(np.sum(np.square(self._directions, dtype=np.float64)))
        cosine = (squared - self._moved) / (self._moved * (self._moved - 1))
        return min(max(cosine, -1.0), 1.0)

    def _averaging_loss(self) -> float | None:
        if not self._trains_both():
            return 0.0
        if not self._changes:
            return None
        return averaging_loss(self._before, self._changes, self._weights)

    def _trains_both(self) -> bool:
        pairs = self._before.manifest.pairs()
        return any(self._names.issuperset(pair) for pair in pairs)


def averaging_loss(
    before: Weights, changes: Sequence[Weights], weights: Sequence[float]
) -> float:
    """What averaging A and B apart loses of the mean product, as a share of it.

    Args:
        before: the adapter before the round.
        changes: one for each site.
        weights: one for each site, not necessarily of sum 1.
    """
    shares = [weight / sum(weights) for weight in weights]
    pairs = before.manifest.pairs()
    factors = before.manifest.select(name for pair in pairs for name in pair)
    sites = [padded(at_site(before, change), factors).tensors() for change in changes]
    lost = whole = 0.0
    for b, a in pairs:
        bs, of_as = _stacked(site[b] for site in sites), _stacked(site[a] for site in sites)
        lost += _norm(_centred(bs, shares), _centred(of_as, shares), shares) ** 2
        whole += _norm(bs, of_as, shares) ** 2
    return float(np.sqrt(lost / whole)) if whole else 0.0


def _stacked(tensors: Iterable[FloatArray]) -> Matrix:
    return np.stack([tensor.astype(np.float64) for tensor in tensors])


def _centred(factors: Matrix, shares: Sequence[float]) -> Matrix:
    """Each site's factor less their weighted mean; shape [K, rows, columns]."""
    return np.asarray(factors - np.tensordot(shares, factors, axes=1))


def _norm(bs: Matrix, of_as: Matrix, shares: Sequence[float]) -> float:
    return product_norm(*stack(list(zip(bs, of_as, strict=True)), shares))
