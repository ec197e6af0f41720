"""A run's results, as one JSON object and as tables for people.

Every ε stands with its δ, its unit and its neighbouring relation.
"""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict
from rich.console import Group
from rich.table import Table

from fedpact.common import accounting
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.study_parties import Sector
from fedpact.server.runs import RunView


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ContributionResult(_Part):
    """What a site's update was worth in a round: the round without it is measured too."""

    score: float | None
    """The score on the public test set less that of the round without the update; above 0 where
    the update helped; null where either is no finite number."""
    loss: float | None
    """The loss of the round without the update less the round's; above 0 where the update helped."""


class RoundResult(_Part):
    """One round."""

    round: int
    loss: float | None
    accuracy: float | None
    """On the public test set, after the round; null for a task whose score is another, and where the
    round was not measured."""
    metrics: dict[str, float]
    """What the task measures on the public test set, by name: first the mean of its score. Empty where
    the round was not measured."""
    seconds: float | None
    sites: int
    """Sites whose update counted."""
    averaging_loss: float | None
    """What averaging A and B apart loses of the mean of BA, as a share of it; 0 where one of
    them is shared."""
    mean_cosine: float | None
    """The mean cosine between two sites' updates: 1 where all go one way."""
    contributions: dict[str, ContributionResult]
    """By institution; empty where the study does not ask for it, the round was not measured, or too
    few updates would be left."""


class SiteResult(_Part):
    """One institution's site."""

    name: str
    sector: Sector
    epsilon: float | None
    """What the run has cost each unit (record or person) here at δ; None without DP."""
    delta: float
    bytes_out: int


class ClassResult(_Part):
    """What sites counted of one label on their own records: sums of noisy counts."""

    label: str
    right: float
    """How many are predicted right; noise may take it below 0."""
    total: float
    """How many there are."""
    right_noise: float
    """The noise's standard deviation in `right`."""
    total_noise: float
    """The same in `total`."""


class CentralResult(_Part):
    """What the coordinator's own noise promises to each institution as a whole."""

    epsilon: float | None
    """Of the rounds so far; None: updates are clipped but not noised."""
    delta: float
    """The δ at which ε is stated: the study's."""
    unit: str
    """Always institution: ε is for adding or removing one."""
    against: str
    """Whom the promise holds against."""
    noise_multiplier: float
    """The coordinator's noise over the clipping norm."""


class RunResult(_Part):
    """A run, from its first round to its adapter."""

    run: str
    study: str
    study_digest: str
    status: str
    message: str
    rounds: list[RoundResult]
    sites: list[SiteResult]
    classes: list[ClassResult]
    """Of the newest round in which sites counted; empty where the study does not ask for it."""
    unit: str
    """Whom the ε of each site is for: adding or removing one of these."""
    central: CentralResult | None
    """None where the coordinator does not clip updates."""
    seconds: float
    adapter: str

    @classmethod
    def of(cls, view: RunView) -> Self:
        """The results of a run as it is now."""
        study, name = view.study, view.study.task.kind.score
        return cls(
            run=view.id,
            study=study.study.name,
            study_digest=study.digest,
            status=view.status,
            message=view.message,
            rounds=[
                RoundResult(
                    round=r.number,
                    loss=r.loss,
                    accuracy=r.accuracy if name == "accuracy" else None,
                    metrics={**({} if r.accuracy is None else {name: r.accuracy}), **r.metrics},
                    seconds=r.seconds,
                    sites=sum(a.state == "updated" for a in r.answers.values()),
                    averaging_loss=r.diagnosis.averaging_loss,
                    mean_cosine=r.diagnosis.mean_cosine,
                    contributions={
                        institution: ContributionResult(score=one.score, loss=one.loss)
                        for institution, one in r.contributions.items()
                    },
                )
                for r in view.rounds
            ],
            sites=[
                SiteResult(
                    name=institution.name,
                    sector=institution.sector,
                    epsilon=_spent(view, institution.name),
                    delta=study.privacy.target_delta,
                    bytes_out=sum(
                        r.answers[institution.name].bytes_in
                        for r in view.rounds
                        if institution.name in r.answers
                    ),
                )
                for institution in study.institutions
            ],
            classes=_classes(view),
            unit=study.unit,
            central=_central(view),
            seconds=sum(r.seconds or 0.0 for r in view.rounds),
            adapter=view.adapter,
        )


def _classes(view: RunView) -> list[ClassResult]:
    """Sums over the sites that counted in the newest round in which any did."""
    counted = [
        [a.classes for a in r.answers.values() if a.classes is not None] for r in view.rounds
    ]
    newest = next((counts for counts in reversed(counted) if counts), [])
    noise = math.hypot(*(counts.noise for counts in newest))
    return [
        ClassResult(
            label=label,
            right=sum(counts.right[n] for counts in newest),
            total=sum(counts.right[n] + counts.wrong[n] for counts in newest),
            right_noise=noise,
            total_noise=math.sqrt(2) * noise,
        )
        for n, label in enumerate(view.study.task.labels if newest else ())
    ]


def _central(view: RunView) -> CentralResult | None:
    """ε of the Gaussian mechanism with every institution in every round."""
    asked, delta = view.study.aggregation, view.study.privacy.target_delta
    if asked.clip_norm is None:
        return None
    ended = sum(r.seconds is not None for r in view.rounds)
    z = asked.noise_multiplier
    return CentralResult(
        epsilon=accounting.epsilon([SubsampledGaussian(z, 1.0, ended)], delta) if z else None,
        delta=delta,
        unit="institution",
        against="whoever sees the adapter alone, not the coordinator",
        noise_multiplier=z,
    )


def _spent(view: RunView, institution: str) -> float | None:
    """The ε that the site stated last."""
    stated = [r.answers[institution].epsilon for r in view.rounds if institution in r.answers]
    return next((epsilon for epsilon in reversed(stated) if epsilon is not None), None)


def overview(view: RunView, *, last: int | None = None) -> Group:
    """Rounds, sites and where the adapter is, as rich tables.

    Args:
        view: the run.
        last: how many of the rounds to show, from the end, and with them the newest that was
            measured; None shows all.
    """
    result = RunResult.of(view)
    rounds = Table(title=f"{result.study}: run {result.run} ({result.status})")
    name = view.study.task.kind.score
    for heading in ("round", "loss", name.replace("_", " "), "seconds", "updates"):
        rounds.add_column(heading, justify="right")
    for r in _newest(result.rounds, last) if last else result.rounds:
        rounds.add_row(
            f"{r.round}/{view.study.training.rounds}",
            _number(r.loss, 4),
            _number(r.metrics.get(name), 4),
            _number(r.seconds, 1),
            str(r.sites),
        )
    classes = [_class_table(result)] if result.classes else []
    return Group(rounds, _site_table(view, result), *classes, _closing(result))


def _newest(rounds: list[RoundResult], last: int) -> list[RoundResult]:
    """The last rounds, and before them the newest that was measured if it is not among them."""
    shown = rounds[-last:]
    if any(r.loss is not None for r in shown):
        return shown
    return [*[r for r in rounds if r.loss is not None][-1:], *shown]


def _site_table(view: RunView, result: RunResult) -> Table:
    private, delta = view.study.is_private, f"{view.study.privacy.target_delta:g}"
    notes = [f"ε at δ = {delta}, for adding or removing one {result.unit}"] if private else []
    table = Table()
    for heading, justify in (
        ("institution", "left"),
        ("sector", "left"),
        ("now", "left"),
        ("ε spent", "right"),
        ("of ε", "right"),
        ("bytes out", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    told = next((r for r in reversed(result.rounds) if r.contributions), None)
    if told is not None:
        table.add_column("contribution", justify="right")
        notes.append(
            f"contribution: {view.study.task.kind.score.replace('_', ' ')} after "
            f"round {told.round} less what it would be without the site's update"
        )
    for site in result.sites:
        table.add_row(
            site.name,
            site.sector.value,
            _doing(view, site.name) if view.rounds else "",
            _number(site.epsilon, 3) if private else "NOT PRIVATE",
            f"{view.study.privacy.target_epsilon:g}" if private else "",
            f"{site.bytes_out:,}",
            *([_contribution(told, site.name)] if told is not None else []),
        )
    table.caption = "\n".join(notes)
    return table


def _contribution(told: RoundResult, institution: str) -> str:
    one = told.contributions.get(institution)
    return "" if one is None or one.score is None else f"{one.score:+.4f}"


def _class_table(result: RunResult) -> Table:
    one = result.classes[0]
    unit = result.unit.split()[0]
    table = Table(
        *("label", f"right ±{one.right_noise:.1f}", f"{unit}s ±{one.total_noise:.1f}"),
        title="On sites' own records, by class",
        caption="sums over the sites; private, noisy: ± is one standard deviation",
    )
    for found in result.classes:
        table.add_row(found.label, f"{found.right:.1f}", f"{found.total:.1f}")
    return table


def _doing(view: RunView, institution: str) -> str:
    answer = view.rounds[-1].answers.get(institution)
    if answer is None:
        return "away"
    if answer.state == "asked":
        return "training"
    measured = ""
    if answer.accuracy is not None:
        kind, name = (
            view.study.evaluation.site_metrics,
            view.study.task.kind.score.replace("_", " "),
        )
        what = "private, noisy" if kind == "private" else "NOT PRIVATE"
        measured = f", {name} {answer.accuracy:.3f} {what}"
    return f"{answer.state}{': ' + answer.reason if answer.reason else ''}{measured}"


def _closing(result: RunResult) -> str:
    lines = [f"{result.seconds:.1f} s in rounds"]
    if (central := result.central) and central.epsilon is not None:
        lines.append(
            f"ε = {central.epsilon:.3f} at δ = {central.delta:g} for adding or removing one "
            f"{central.unit}, by the coordinator's noise: against {central.against}"
        )
    if result.message:
        lines.append(result.message)
    if result.adapter:
        lines.append(f"adapter: {result.adapter}")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
