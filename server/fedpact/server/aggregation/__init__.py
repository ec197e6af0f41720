"""How updates become one adapter, one file per method.

Three choices of a study meet here. A *rule* makes one change of many: the weighted mean, the
mean of clipped updates with noise, or one of `robust`. A *server optimiser*, if there is one, turns that change into a step. A
*method* is a class `Round` that is made of the adapter before the round and the rule: `add`
takes one site's change with its public weight as it comes, `result` gives the adapter after.

The mean keeps nothing but a running sum, so memory does not grow with the number of sites.
Robust rules (but norm bounding) and methods that need all sites' factors must see all updates at
once and keep them.

A result is a function of the adapter before, the optimiser's state, and the updates in the
order in which they came, to the bit: an audit can make a round again of what was stored. Only the
coordinator's own noise cannot be drawn again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.study import Study
from fedpact.server.aggregation.clipped import Clipped, Clipping
from fedpact.server.aggregation.mean import Mean
from fedpact.server.aggregation.rules import Method, Rule
from fedpact.server.aggregation.server_optimizer import Stepped


@dataclass(frozen=True, eq=False)
class Standing:
    """What a run has come to after a round.

    Attributes:
        adapter: its weights, all of them.
        state: what the server optimiser remembers; None without one, and before it began.
    """

    adapter: Weights
    state: Weights | None = None


class Round:
    """One round's aggregation, by a study's method, rule and server optimiser.

    Args:
        study: whose `[aggregation]` is taken.
        before: what the run has come to.
        number: of the round, from 1.
        clipping: the run's, which a study that clips updates needs; `result` moves its norm.
    """

    def __init__(
        self, study: Study, before: Standing, number: int, clipping: Clipping | None = None
    ) -> None:
        self._stepped: Stepped | None = None
        rule = _rule(study, _averaged(study, before.adapter.manifest, number), clipping)
        if study.aggregation.server_optimizer != "none":
            rule = self._stepped = Stepped(rule, study.aggregation, before.state)
        module = import_module(f"{__name__}.{_module(study.aggregation.method)}")
        self._method = cast("Method", module.Round(before.adapter, rule))

    def add(self, change: Weights, weight: float) -> None:
        """Take one site's change of what the round trains; `weight` is its declared size."""
        self._method.add(change, weight)

    def result(self) -> Standing:
        """What the run has come to after the round.

        Raises:
            RunError: nothing was added.
        """
        adapter = self._method.result()
        return Standing(adapter, self._stepped.state if self._stepped else None)


def sent(study: Study, adapter: Weights, names: Iterable[str]) -> dict[str, Weights]:
    """What each institution is sent of an adapter: as much as its rank holds, by sorted names.

    Institutions of one rank share one object.
    """
    ranks = {name: study.rank(name) for name in sorted(names)}
    cut = {rank: adapter.of_rank(rank) for rank in set(ranks.values())}
    return {name: cut[rank] for name, rank in ranks.items()}


def trained_manifest(study: Study, adapter: Manifest, number: int) -> Manifest:
    """Which of the adapter's tensors sites train in a round."""
    return adapter.select(name for name in adapter.names if study.trains(name, number))


def _averaged(study: Study, adapter: Manifest, number: int) -> Manifest:
    """What the rule is for: all that is trained, but for factors of which the method takes all."""
    trained = trained_manifest(study, adapter, number)
    if not study.aggregation.keeps_factors:
        return trained
    factors = {name for pair in adapter.pairs() for name in pair}
    return trained.select(name for name in trained.names if name not in factors)


def _rule(study: Study, trained: Manifest, clipping: Clipping | None) -> Rule:
    if study.aggregation.clip_norm is not None:
        if clipping is None:
            raise ValueError("a study that clips updates needs the run's clipping")
        return Clipped(trained, clipping)
    if study.aggregation.robust == "none":
        return Mean(trained)
    module = import_module(f"{__name__}.robust.{_module(study.aggregation.robust)}")
    return cast("Rule", module.Rule(trained, study.aggregation))


def _module(name: str) -> str:
    return name.replace("-", "_")
