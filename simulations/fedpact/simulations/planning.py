"""What a study will cost each site, before anybody spends anything.

For each institution the study names: the sampling rate and the noise that its declared size
and the study's budget lead to, exactly as its site will compute them, and what the same run
would mean under other assumptions than the ledger's: twice the rounds, one record replaced
instead of added or removed, a person with several records.
"""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel, ConfigDict
from rich.console import Group
from rich.table import Table

from fedpact.client import private_metrics
from fedpact.common import accounting, neighbours
from fedpact.common.errors import BudgetError, StudyError
from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian
from fedpact.common.planned import plan_metrics, whole_run
from fedpact.common.study import Study
from fedpact.common.study_parties import Sector

PERSON_RECORDS = (2, 4, 8)


class SitePlan(BaseModel):
    """What the whole run is at one institution.

    Everything but the first six fields is None where the budget cannot buy the plan (`why`
    says so) or the study has no DP.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    sector: Sector
    records: int
    """The declared size."""
    persons: int | None
    """How many persons that is declared to be."""
    sample_rate: float
    """q, with which each record (or person, where the unit is one) is in a batch."""
    steps: int
    """Private steps of the whole run."""
    noise_multiplier: float | None = None
    """σ: the noise's standard deviation over the clipping norm."""
    noise_per_record: float | None = None
    """The noise on the mean gradient's every coordinate, in clipping norms: σ over the batch."""
    epsilon: float | None = None
    """ε at δ of the whole run, for adding or removing one record, or person."""
    epsilon_replace_one: float | None = None
    """The same run's ε for replacing one record, or person, by another."""
    epsilon_twice_the_rounds: float | None = None
    """ε if the rounds doubled and the noise stayed."""
    noise_twice_the_rounds: float | None = None
    """σ that would keep the budget if the rounds doubled."""
    epsilon_of_person: dict[int, float] | None = None
    """Where the unit is a record: ε for a person, by how many records the person has."""
    metrics_epsilon: float | None = None
    """Private metrics: ε that they cost alone in the whole run. It is part of `epsilon`."""
    accuracy_noise: float | None = None
    """Private metrics: standard deviation of the noise in one round's mean score."""
    count_noise: float | None = None
    """Private metrics by class: standard deviation of the noise in each count of one round."""
    noise_for_records: float | None = None
    """Where the unit is a person: σ with which the budget would cover single records only."""
    why: str = ""
    """Why the budget cannot buy the plan."""


class StudyPlan(BaseModel):
    """The plan of a study."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    study: str
    study_digest: str
    target_epsilon: float | None
    """None: the study has no DP."""
    delta: float
    unit: str
    rounds: int
    local_steps: int
    sites: list[SitePlan]
    accuracy: float | None = None
    """On the public test set after a simulation, where one was asked for."""


def plan(study: Study, persons: Sequence[int] = PERSON_RECORDS) -> Iterator[SitePlan]:
    """Plan each institution's part, one after the other: each takes some seconds.

    Args:
        study: the study.
        persons: records of the persons for whom ε is computed too, where the unit is a record.

    Raises:
        StudyError: the study names no institutions.
    """
    if not study.institutions:
        raise StudyError(
            "The study names no institutions, so there are no sizes to plan with.",
            advice="Add an [[institutions]] entry for each that takes part.",
        )
    for institution in study.institutions:
        found = SitePlan(
            name=institution.name,
            sector=institution.sector,
            records=institution.records,
            persons=institution.persons,
            sample_rate=study.sample_rate(institution.name),
            steps=study.total_steps,
        )
        yield (
            found.model_copy(update=_costs(study, found, persons))
            if study.is_private
            else found
        )


def of(study: Study, sites: Iterable[SitePlan], accuracy: float | None = None) -> StudyPlan:
    """Put the plan of a study together."""
    return StudyPlan(
        study=study.study.name,
        study_digest=study.digest,
        target_epsilon=study.privacy.target_epsilon if study.is_private else None,
        delta=study.privacy.target_delta,
        unit=study.unit,
        rounds=study.training.rounds,
        local_steps=study.training.local_steps,
        sites=list(sites),
        accuracy=accuracy,
    )


def _costs(study: Study, site: SitePlan, persons: Sequence[int]) -> dict[str, object]:
    target, delta = study.privacy.target_epsilon, study.privacy.target_delta
    try:
        metrics = whole_run(study, plan_metrics(study))
        sigma = accounting.noise_multiplier(
            target, delta, site.sample_rate, site.steps, metrics
        )
    except BudgetError as error:
        return {"why": error.message}
    run = SubsampledGaussian(sigma, site.sample_rate, site.steps)
    twice = SubsampledGaussian(sigma, site.sample_rate, 2 * site.steps)
    beside = [] if metrics is None else [metrics]
    return {
        "noise_multiplier": sigma,
        "noise_per_record": sigma / study.expected_batch_size(site.name),
        "epsilon": accounting.epsilon([run, *beside], delta),
        "epsilon_replace_one": neighbours.replace_one_epsilon(run, delta, metrics),
        "epsilon_twice_the_rounds": accounting.epsilon([twice, *beside, *beside], delta),
        "noise_twice_the_rounds": _noise_or_none(target, delta, twice, metrics),
        **_other_unit(study, site, run, metrics, persons),
        **_of_metrics(study, site),
    }


def _of_metrics(study: Study, site: SitePlan) -> dict[str, object]:
    """What private metrics cost, and how wide their noise is."""
    release = plan_metrics(study)
    whole = whole_run(study, release)
    if release is None or whole is None:
        return {}
    spread = release.noise_multiplier * private_metrics.sensitivity(study)
    return {
        "metrics_epsilon": accounting.epsilon([whole], study.privacy.target_delta),
        "accuracy_noise": spread / study.expected_validation(site.name),
        "count_noise": spread if study.evaluation.per_class else None,
    }


def _other_unit(
    study: Study,
    site: SitePlan,
    run: SubsampledGaussian,
    metrics: GaussianRelease | None,
    persons: Sequence[int],
) -> dict[str, object]:
    """What the run is to whom its promise does not name."""
    target, delta = study.privacy.target_epsilon, study.privacy.target_delta
    if study.privacy.unit == "person":
        rate = min(study.training.batch_size, site.records) / site.records
        of_records = SubsampledGaussian(run.noise_multiplier, rate, run.steps)
        return {"noise_for_records": _noise_or_none(target, delta, of_records, metrics)}
    epsilons = {n: neighbours.person_epsilon(run, n, delta, metrics) for n in persons}
    return {"epsilon_of_person": epsilons}


def _noise_or_none(
    target: float, delta: float, run: SubsampledGaussian, metrics: GaussianRelease | None
) -> float | None:
    try:
        # Twice as many metrics with the same share of ε cost the same.
        return accounting.noise_multiplier(target, delta, run.sample_rate, run.steps, metrics)
    except BudgetError:
        return None


def tables(found: StudyPlan) -> Group:
    """The plan for people."""
    if found.target_epsilon is None:
        plain = Table("institution", "records", "q", "steps", title=f"{found.study}: no DP")
        for site in found.sites:
            plain.add_row(
                site.name, f"{site.records:,}", f"{site.sample_rate:.4g}", f"{site.steps}"
            )
        return Group(plain, "Updates are NOT private: [privacy] mechanism is none.")
    by_person = found.unit != "record"
    size = "persons" if by_person else "records"
    buys = Table(
        *("institution", size, "q", "steps", "σ", "σ/batch", "ε", "σ, rounds x2"),
        title=f"{found.study}: what ε = {found.target_epsilon:g} buys",
        caption=f"ε at δ = {found.delta:g}, for adding or removing one {found.unit}",
    )
    planned = next((s.epsilon_of_person for s in found.sites if s.epsilon_of_person), {})
    others = ["σ for records"] if by_person else [f"person with {n}" for n in planned]
    means = Table(
        *("institution", "replace one", "rounds x2", *others),
        title="What the same run's ε is",
        caption=f"at δ = {found.delta:g}; "
        + (
            "the last column is the noise that would protect single records only"
            if by_person
            else "the last columns for adding or removing a person"
        ),
    )
    for site in found.sites:
        units = site.persons if by_person else site.records
        head = (site.name, f"{units:,}", f"{site.sample_rate:.4g}", f"{site.steps}")
        buys.add_row(
            *head,
            *map(_cell, (site.noise_multiplier, site.noise_per_record)),
            *map(_cell, (site.epsilon, site.noise_twice_the_rounds)),
        )
        if site.noise_multiplier is not None:
            persons = (site.epsilon_of_person or {}).values()
            means.add_row(
                site.name,
                *map(_cell, (site.epsilon_replace_one, site.epsilon_twice_the_rounds)),
                *map(_cell, [site.noise_for_records] if by_person else persons),
            )
    lines = [f"{site.name}: {site.why}" for site in found.sites if site.why]
    lines += [_metrics_line(site) for site in found.sites if site.metrics_epsilon is not None]
    if found.accuracy is not None:
        lines.append(f"A simulation of it ended at accuracy {found.accuracy:.4f}.")
    return Group(buys, *([means] if means.row_count else []), *lines)


def _metrics_line(site: SitePlan) -> str:
    counts = f", each count by class by {_cell(site.count_noise)}" if site.count_noise else ""
    return (
        f"{site.name}: of its ε, private metrics alone cost {_cell(site.metrics_epsilon)}; a round's "
        f"mean score is off by {_cell(site.accuracy_noise)} (one standard deviation){counts}."
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
