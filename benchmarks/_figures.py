"""What the scores of a row come to: differences in points, seed by seed, and whether a target is met.

A rule takes scores and returns figures; of what was not measured (yet) there are none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from fedpact.simulations.comparison_results import Spread

Scores = Mapping[str, Mapping[int, float]]
"""Variant to seed to score, in [0, 1]."""


@dataclass(frozen=True)
class Figure:
    """A number that a target is about.

    Attributes:
        what: it is of.
        value: in the unit that `what` names.
        sd: its standard deviation over seeds; None of fewer than two, or of a count.
        target: what it should be; empty if it is only reported.
        met: whether it is; None without a target.
    """

    what: str
    value: float
    sd: float | None = None
    target: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.value:.2f}{spread}{self.verdict and ', ' + self.verdict}"

    @property
    def verdict(self) -> str:
        """The target, and whether it is met."""
        return (
            f"target {self.target}: {'met' if self.met else 'NOT MET'}" if self.target else ""
        )


Rule = Callable[[Scores], Sequence[Figure]]


def within(one: str, other: str, points: float) -> Rule:
    """One variant's mean is no further than so many points from another's, above or below."""
    return _gap_rule(one, other, f"within {points:g}", lambda gap: abs(gap) <= points)


def not_below(one: str, other: str, points: float) -> Rule:
    """One variant's mean is no more than so many points below another's."""
    return _gap_rule(one, other, f">= {-points:g}", lambda gap: gap >= -points)


def _gap_rule(one: str, other: str, target: str, meets: Callable[[float], bool]) -> Rule:
    def rule(scores: Scores) -> Sequence[Figure]:
        gap = _gap(scores, one, other)
        if gap is None:
            return []
        what = f"{one} less {other}, points"
        return [Figure(what, gap.mean, gap.sd, target, meets(gap.mean))]

    return rule


def at_least(variant: str, percent: float) -> Rule:
    """A variant's mean score is that many percent."""

    def rule(scores: Scores) -> Sequence[Figure]:
        if not (values := list(scores.get(variant, {}).values())):
            return []
        found = Spread.of([100 * value for value in values])
        met = found.mean >= percent
        return [Figure(f"{variant}, percent", found.mean, found.sd, f">= {percent:g}", met)]

    return rule


def best_beyond_spread(reference: str) -> Rule:
    """The best of the others is above a variant by more than the gap's deviation over seeds.

    Where the reference fails in some seeds and not in others, most of that deviation is its own, and
    no number of seeds makes it smaller. So the 95 % interval of the mean gap is reported too.
    """

    def rule(scores: Scores) -> Sequence[Figure]:
        what, gap = _best_less(scores, reference)
        if gap is None:
            return []
        met = gap.sd is not None and gap.mean > gap.sd
        first = Figure(what, gap.mean, gap.sd, "above its spread", met)
        if gap.sd is None:
            return [first]
        reach = float(stats.t.ppf(0.975, gap.n - 1)) * gap.sd / math.sqrt(gap.n)
        return [
            first,
            Figure("low end of the mean's 95 % interval", gap.mean - reach),
            Figure("high end of the mean's 95 % interval", gap.mean + reach),
        ]

    return rule


def best_less(reference: str) -> Rule:
    """How far the best of the others is above a variant: reported, without a target."""

    def rule(scores: Scores) -> Sequence[Figure]:
        what, gap = _best_less(scores, reference)
        return [] if gap is None else [Figure(what, gap.mean, gap.sd)]

    return rule


def _best_less(scores: Scores, reference: str) -> tuple[str, Spread | None]:
    """What the best of the others is above a variant, and how that is called."""
    best = next((name for name in ranked(scores) if name != reference), reference)
    gap = None if best == reference else _gap(scores, best, reference)
    return f"{best}, the best, less {reference}, points", gap


def borne(rules: Sequence[str], attacks: Sequence[str], honest: str, points: float) -> Rule:
    """For each attack, how far the best rule stays below plain averaging without any.

    Variants are called `RULE, ATTACK`; the first rule is plain averaging.
    """

    def rule(scores: Scores) -> Sequence[Figure]:
        figures = []
        for attack in attacks:
            under = {f"{one}, {attack}": one for one in rules}
            best = next((name for name in ranked(scores) if name in under), "")
            lost = _gap(scores, honest, best)
            if lost is None:
                continue
            what = f"{attack}: points that {under[best]}, the best, is below {honest}"
            met = lost.mean <= points
            figures.append(Figure(what, lost.mean, lost.sd, f"<= {points:g}", met))
            if plain := _gap(scores, honest, f"{rules[0]}, {attack}"):
                what = f"{attack}: points that {rules[0]} is below {honest}"
                figures.append(Figure(what, plain.mean, plain.sd))
        return sorted(figures, key=_urgency)

    return rule


def _urgency(figure: Figure) -> tuple[bool, float]:
    """The figure furthest from its target first, what is only reported last."""
    return not figure.target, -figure.value


def ranked(scores: Scores) -> list[str]:
    """Variants with any score, from the highest mean to the lowest."""
    means = {name: Spread.of(list(by.values())).mean for name, by in scores.items() if by}
    return sorted(means, key=lambda name: -means[name])


def _gap(scores: Scores, one: str, other: str) -> Spread | None:
    """The difference in points, seed by seed; None if no seed has both."""
    first, second = scores.get(one, {}), scores.get(other, {})
    gaps = [100 * (first[seed] - second[seed]) for seed in first if seed in second]
    return Spread.of(gaps) if gaps else None
