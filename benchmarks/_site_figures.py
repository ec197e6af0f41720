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
    """On the whole test set, over all sites; with who lost."""
    figures = shared_beats_alone(scores)
    return [replace(f, target="> 0", met=f.value > 0) for f in figures[:1]] + [
        replace(f, target="", met=None) for f in figures[1:]
    ]


def shared_beats_alone(scores: SiteScores) -> Sequence[Figure]:
    """On the whole test set, for every site; with the mean gain and who lost."""
    alone, shared = scores.get(ALONE, {}), scores.get(SHARED, {})
    by_seed: dict[int, list[float]] = defaultdict(list)
    by_site: dict[str, list[float]] = defaultdict(list)
    for key in sorted(set(alone) & set(shared)):
        before, after = alone[key].whole, shared[key].whole
        if before is None or after is None:
            continue
        gain = 100 * (after - before)
        by_seed[key[1]].append(gain)
        by_site[key[0]].append(gain)
    if not by_seed:
        return []
    mean = Spread.of([Spread.of(gains).mean for gains in by_seed.values()])
    gains = {site: Spread.of(found).mean for site, found in by_site.items()}
    losers = [site for site, gain in gains.items() if gain <= 0]
    won, all_of = len(gains) - len(losers), len(gains)
    return [
        Figure("mean gain of shared over alone, whole test, points", mean.mean, mean.sd),
        Figure(
            f"sites of {all_of} with shared above alone, whole test{_named(losers)}",
            won,
            target=f"{all_of} of {all_of}",
            met=won == all_of,
        ),
    ]


def personal_matches_alone(spared: int) -> SiteRule:
    """On its own test records each site does at least as well as alone, but for so many sites.

    One figure for each way, the one that serves most sites first. The best way is chosen on the
    same test records.
    """

    def rule(scores: SiteScores) -> Sequence[Figure]:
        figures = []
        for way in scores:
            gains = _own_gains(scores, way)
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


def _own_gains(scores: SiteScores, way: str) -> dict[str, float]:
    """Each site's gain over alone in points, on its own test records; mean over seeds."""
    alone, got = scores.get(ALONE, {}), scores[way]
    gains: dict[str, list[float]] = defaultdict(list)
    for key in sorted(set(alone) & set(got)):
        before, after = alone[key].own, got[key].own
        if before is not None and after is not None:
            gains[key[0]].append(100 * (after - before))
    return {site: Spread.of(found).mean for site, found in gains.items()}


def _named(losers: Sequence[str]) -> str:
    return f" (not {', '.join(losers)})" if losers else ""
