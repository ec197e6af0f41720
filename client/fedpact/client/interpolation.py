"""An adapter between the shared one and a site's own: how far, the site's held-out records say.

Model interpolation (Mansour et al., Three Approaches for Personalization with Applications to
Federated Learning, 2020, §5): h = λ·h_own + (1 − λ)·h_shared, with λ chosen on records held out;
here of weights (Wortsman et al., Model Soups, 2022) and with the shared one trained on first. A
mean of two adapters is one only where both have the same A.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpact.client.validation import hold_out
from fedpact.common.adapter import Weights
from fedpact.common.records import EncodedRecords

_HELD_OUT: Final = 0.2
_SALT: Final = b"fedpact between"  # other records than those set aside for metrics
# Of shares that do equally well the first is taken.
SHARES: Final = (0.5, 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class _Ends:
    shared: Weights
    own: Weights

    def at(self, share: float) -> Weights:
        flat = share * self.shared.flat + (1 - share) * self.own.flat
        return Weights(self.shared.manifest, flat.astype(np.float32))


def interpolate(
    shared: Weights,
    zero: Weights,
    records: EncodedRecords,
    train: Callable[[Weights, EncodedRecords], Weights],
    score: Callable[[Weights, EncodedRecords], float],
) -> tuple[Weights, float]:
    """Train on from the shared adapter and from zero, and take of both what does best.

    With a fifth of the records held out first, to choose; then anew on all of them.

    Args:
        shared: the shared adapter, whole.
        zero: the same A, and all that is trained at its first values.
        records: the site's training records; so few that none is held out get the mean.
        train: returns the adapter that was trained from one, on some records.
        score: how good an adapter is on some records, the more the better.

    Returns:
        the adapter, and how much of it was trained on from the shared one: 1 − λ.
    """

    def ends(some: EncodedRecords) -> _Ends:
        return _Ends(train(shared, some), train(zero, some))

    parts, share = hold_out(records, _HELD_OUT, _SALT), SHARES[0]
    if len(parts.training) and len(parts.validation):
        tried = ends(parts.training)
        share = max(SHARES, key=lambda s: score(tried.at(s), parts.validation))
    return ends(records).at(share), share
