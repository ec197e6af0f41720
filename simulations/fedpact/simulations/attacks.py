"""Sites that send what they should not, in a simulation: to see what robust rules bear.

An attack is written KIND:N, with N bad sites, the last of the federation. They are asked last and
know what all others have sent in the round, which no real site does.

    label-flip    trains honestly on wrong labels, each the next one
    sign-flip     sends its change turned round, and larger
    noise         sends Gaussian noise in the place of its change, and larger
    collusion     all bad sites send the mean of the honest, turned round
    little        all send the honest mean, moved by as much as hides in the honest spread
                  (Baruch et al., "A Little Is Enough", NeurIPS 2019)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.errors import UsageError
from fedpact.common.records import TARGET
from fedpact.simulations.federation import Federation
from fedpact.simulations.grid import Answer

LARGER: Final = 5.0
"""How many times as large as an honest change a gross one is."""

_Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Attack:
    """What bad sites do, and how many there are."""

    kind: str
    bad: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an attack.

        Raises:
            UsageError: it is none.
        """
        kind, _, number = text.partition(":")
        if kind not in KINDS or not number.isdecimal() or int(number) < 1:
            raise UsageError(
                f"{text!r} is not an attack.",
                advice=f"Write one of {', '.join(KINDS)}, as {KINDS[0]}:2.",
            )
        return cls(kind, int(number))

    def on_labels(self, federation: Federation) -> Federation:
        """The federation as its bad sites see it: with label-flip, their labels are wrong.

        Raises:
            UsageError: there would be no honest site.
        """
        shards = federation.shards
        if self.bad >= len(shards):
            raise UsageError(f"Of {len(shards)} sites, {self.bad} cannot be bad.")
        if self.kind != "label-flip":
            return federation
        if federation.study.task.name != "text-classification":
            raise UsageError("label-flip needs a task with one label for each record.")
        records, known = federation.records, len(federation.study.task.labels)
        labels = records.labels.copy()
        wrong = np.concatenate([shard.indices for shard in shards[-self.bad :]])
        labels[wrong] = (labels[wrong] + 1) % known
        target = replace(records.columns[TARGET], values=labels)
        columns = {**records.columns, TARGET: target}
        return replace(federation, records=replace(records, columns=columns))


class Conspiracy:
    """The bad sites of one run.

    Args:
        attack: what they do.
        sites: how many sites there are, good and bad.
        seed: of their noise.
    """

    def __init__(self, attack: Attack, sites: int, seed: int) -> None:
        self._attack = attack
        self._sites = sites
        self._rng = np.random.default_rng([seed, sites])
        self._round = 0
        self._honest: list[_Vector] = []

    def around(self, index: int, answer: Answer) -> Answer:
        """What a site answers: the honest are heard, the bad forge."""
        is_bad = index >= self._sites - self._attack.bad

        def heard(packet: wire.Packet) -> wire.Packet:
            reply = answer(packet)
            header, change = wire.unpack(reply)
            if not isinstance(header, wire.UpdateHeader) or change is None:
                return reply
            if header.round != self._round:
                self._round, self._honest = header.round, []
            if not is_bad:
                self._honest.append(change.flat)
                return reply
            forge = _FORGERIES.get(self._attack.kind)
            if forge is None:
                return reply
            forged = Weights(change.manifest, forge(self, change.flat).astype(np.float32))
            header = header.model_copy(update={"change": wire.ArrayInfo.of(forged)})
            return wire.pack(header, forged)

        return heard

    def _sign_flip(self, own: _Vector) -> _Vector:
        return -LARGER * own

    def _noise(self, own: _Vector) -> _Vector:
        drawn = self._rng.standard_normal(len(own)).astype(np.float32)
        size = LARGER * np.linalg.norm(own) / np.linalg.norm(drawn)
        return np.multiply(drawn, size, dtype=np.float32)

    def _collusion(self, _own: _Vector) -> _Vector:
        turned: _Vector = -np.stack(self._honest).mean(0)
        return turned

    def _little(self, _own: _Vector) -> _Vector:
        """As far from the mean as lets enough of the honest lie further out (their eq. 3)."""
        honest = np.stack(self._honest)
        good = len(honest)
        needed = self._sites // 2 + 1 - self._attack.bad
        share = min(max((good - needed) / good, 0.5), 0.999)
        z = NormalDist().inv_cdf(share)
        moved: _Vector = honest.mean(0) - np.float32(z) * honest.std(0)
        return moved


_FORGERIES: Final[dict[str, Callable[[Conspiracy, _Vector], _Vector]]] = {
    "sign-flip": Conspiracy._sign_flip,  # noqa: SLF001
    "noise": Conspiracy._noise,  # noqa: SLF001
    "collusion": Conspiracy._collusion,  # noqa: SLF001
    "little": Conspiracy._little,  # noqa: SLF001
}
KINDS: Final = ("label-flip", *_FORGERIES)
