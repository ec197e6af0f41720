"""What joining was worth to each site: alone, shared and personal, and what that comes to.

Alone is always without DP, as nothing of it leaves: under DP that is the hardest comparison.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from _figures import Figure
from fedpact.simulations.comparison_results import Spread

ALONE, SHARED = "alone", "shared"


class Had(BaseModel):
    """The score of an adapter that a site has: on its own test records, and on all of them.

    A personal adapter is for the site's own; without a column that says whose they are, for none.
    """

    model_config = ConfigDict(frozen=True)

    own: float | None
    whole: float | None


SiteScores = Mapping[str, Mapping[tuple[str, int], Had]]
"""Alone, shared or a personalisation; to site and seed; to what it had. Names are of the same site
with every seed, or else tell the seed."""

SiteRule = Callable[[SiteScores], Sequence[Figure]]


def joining_is_worth_it(scores: SiteScores) -> Sequence[Figure]:
    """On the whole test set, in the mean over sites; with who lost."""
    if not (gains := _gains(scores, SHARED, _whole)):
        return []
    mean = _mean_gain(gains)
    return [replace(mean, target="> 0", met=mean.value > 0), _winners(gains)]


def shared_beats_alone(scores: SiteScores) -> Sequence[Figure]:
    """On the whole test set, for every site; with the mean gain and who lost."""
    if not (gains := _gains(scores, SHARED, _whole)):
        return []
    winners, all_of = _winners(gains), len(_by_site(gains))
    target, met = f"{all_of} of {all_of}", winners.value == all_of
    return [_mean_gain(gains), replace(winners, target=target, met=met)]


def personal_matches_alone(spared: int) -> SiteRule:
    """On its own test records each site does at least as well as alone, but for so many sites.

    One figure for each way, the one that serves most sites first. The best way is chosen on the
    same test records.
    """

    def rule(scores: SiteScores) -> Sequence[Figure]:
        figures = []
        for way in scores:
            gains = _by_site(_gains(scores, way, _own))
            if way == ALONE or not gains:
                continue
            worse = [site for site, gain in gains.items() if gain < 0]
            good, needed = len(gains) - len(worse), len(gains) - spared
            what = f"sites of {len(gains)} with {way} at least as good as alone, own test"
            target = "" if way == SHARED else f">= {needed}"
            met = None if way == SHARED else good >= needed
            figures.append(Figure(what + _named(worse), good, target=target, met=met))
        return sorted(figures, key=lambda f: (not f.target, -f.value))

    return rule


Gains = Mapping[tuple[str, int], float]
"""Site and seed to what a way is above alone, in points."""


def _gains(scores: SiteScores, way: str, score: Callable[[Had], float | None]) -> Gains:
    alone, got = scores.get(ALONE, {}), scores.get(way, {})
    gains = {}
    for key in sorted(set(alone) & set(got)):
        before, after = score(alone[key]), score(got[key])
        if before is not None and after is not None:
            gains[key] = 100 * (after - before)
    return gains


def _whole(had: Had) -> float | None:
    return had.whole


def _own(had: Had) -> float | None:
    return had.own


def _by_site(gains: Gains) -> dict[str, float]:
    """Mean over seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    for (site, _), gain in gains.items():
        found[site].append(gain)
    return {site: Spread.of(values).mean for site, values in found.items()}


def _mean_gain(gains: Gains) -> Figure:
    """Mean over sites; its spread over seeds."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for (_, seed), gain in gains.items():
        by_seed[seed].append(gain)
    mean = Spread.of([Spread.of(values).mean for values in by_seed.values()])
    return Figure("mean gain of shared over alone, whole test, points", mean.mean, mean.sd)


def _winners(gains: Gains) -> Figure:
    by_site = _by_site(gains)
    losers = [site for site, gain in by_site.items() if gain <= 0]
    what = f"sites of {len(by_site)} with shared above alone, whole test{_named(losers)}"
    return Figure(what, len(by_site) - len(losers))


def _named(losers: Sequence[str]) -> str:
    return f" (not {', '.join(losers)})" if losers else ""
