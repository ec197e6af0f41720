"""The card of a model: what it was made of and what that cost, in Hugging Face's format.

Markdown with a YAML header, beside the adapter. Every number is of the run, of the study, or of a
verdict that an institution signed; none is typed by hand.
"""

import json
from collections import Counter
from collections.abc import Sequence

from fedpact.common import neighbours
from fedpact.common.planned import plan, plan_metrics, whole_run
from fedpact.common.study import Study
from fedpact.common.verdict import Verdict
from fedpact.server.results import CentralResult, RunResult
from fedpact.server.runs import RunView

# How many records of one person the card says ε for.
_PERSON_RECORDS = (2, 4, 8)


def card(view: RunView, verdicts: Sequence[Verdict] = (), *, in_full: bool = False) -> str:
    """Write a run's card.

    Args:
        view: the run.
        verdicts: of audits, verified.
        in_full: with ε for other neighbouring relations, which takes seconds to compute.
    """
    study, result = view.study, RunResult.of(view)
    parts = [_header(study), f"# {study.study.name}", _about(study, result)]
    parts += ["## Privacy", _privacy(study, result)]
    if study.is_private and in_full:
        parts.append(_other_neighbours(study))
    if result.central is not None:
        parts.append(_central(result.central))
    parts += ["## Audits", _audits(verdicts), "## Quality", _quality(study, result)]
    parts += ["## Limits", _LIMITS]
    return "\n\n".join(parts) + "\n"


_LIMITS = """\
- ε bounds what can be learned about one unit; facts about groups can be learned, and are meant to be.
- The base model's own training data are not covered.
- Floating-point noise, timing, and choices made by looking at records beforehand are not covered.
- Nobody outside has reviewed fedpact's code."""


def _header(study: Study) -> str:
    # A JSON string is a YAML string, whatever is in it.
    return (
        f"---\nbase_model: {json.dumps(study.model.base)}\nlibrary_name: peft\n"
        f"pipeline_tag: {study.task.kind.pipeline}\ntags:\n- {study.task.name}\n- fedpact\n- federated-learning\n- lora\n"
        + ("- differential-privacy\n" if study.is_private else "")
        + "---"
    )


def _about(study: Study, result: RunResult) -> str:
    sectors = Counter(str(institution.sector) for institution in study.institutions)
    rounds = sum(r.seconds is not None for r in result.rounds)
    rows = {
        "study": study.digest,
        "purpose": _cell(study.study.purpose) or "not said",
        "use": study.study.use,
        "run": f"{result.run} ({result.status})",
        "institutions": ", ".join(f"{n} of {sector}" for sector, n in sorted(sectors.items())),
        "rounds": f"{rounds} of {study.training.rounds}, {study.training.local_steps} steps each",
        "method": study.aggregation.method,
        "LoRA": f"rank {study.adapter.r}, alpha {study.adapter.lora_alpha}",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _privacy(study: Study, result: RunResult) -> str:
    if not study.is_private:
        return "NOT PRIVATE: updates were sent without noise, and the adapter can give away records."
    said = (
        f"ε at δ = {study.privacy.target_delta:g}, for adding or removing one {result.unit}, by "
        "DP-SGD at each site, as each site states it. The study allows "
        f"ε = {study.privacy.target_epsilon:g}."
    )
    lines = [said, "", "| institution | sector | ε |", "| --- | --- | --- |"]
    for site in result.sites:
        spent = "took no part" if site.epsilon is None else f"{site.epsilon:.4g}"
        lines.append(f"| {_cell(site.name)} | {site.sector} | {spent} |")
    return "\n".join(lines)


def _other_neighbours(study: Study) -> str:
    """ε of the whole study under other relations: an upper bound on that of a run cut short."""
    delta, unit = study.privacy.target_delta, study.privacy.unit
    persons = _PERSON_RECORDS if unit == "record" else ()
    heads = ["institution", f"one {unit} replaced"]
    heads += [f"a person with {n} records added or removed" for n in persons]
    lines = [
        f"The same mechanism over all rounds of the study, ε at δ = {delta:g}, for other neighbours:",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    beside = whole_run(study, plan_metrics(study))
    for institution in study.institutions:
        mechanism = plan(study, institution.name)
        assert mechanism is not None  # noqa: S101 - the study is private
        run = type(mechanism)(
            mechanism.noise_multiplier, mechanism.sample_rate, study.total_steps
        )
        found = [neighbours.replace_one_epsilon(run, delta, beside)]
        found += [neighbours.person_epsilon(run, n, delta, beside) for n in persons]
        numbers = " | ".join(f"{epsilon:.4g}" for epsilon in found)
        lines.append(f"| {_cell(institution.name)} | {numbers} |")
    return "\n".join(lines)


def _central(central: CentralResult) -> str:
    if central.epsilon is None:
        return "The coordinator clipped updates and added no noise: no promise to institutions."
    return (
        f"Apart from that, ε = {central.epsilon:.4g} at δ = {central.delta:g} for adding or removing "
        f"one {central.unit}, by the coordinator's noise: against {central.against}."
    )


def _audits(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "None was given. No audit can prove that ε is not larger."
    return "\n".join(
        f"- {_cell(v.institution)}, {v.on}, fedpact {v.software}: with {100 * v.confidence:.4g} % "
        f"confidence ε is above {v.lower_bound:.4g}; claimed is {v.claimed_epsilon:.4g}, at δ = "
        f"{v.delta:g}, for adding or removing one {v.unit}. {v.correct} of {v.guesses} guesses on "
        f"{v.canaries} canaries were right: "
        + ("THE CLAIM IS CONTRADICTED." if v.contradicted else "the claim is not contradicted.")
        for v in verdicts
    )


def _quality(study: Study, result: RunResult) -> str:
    measured = [r for r in result.rounds if r.loss is not None]
    lines = ["There was no public test set."]
    if measured:
        last = measured[-1]
        where = f"On the study's public test set, after round {last.round}"
        found = {"loss": last.loss, **last.metrics}
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        lines = [f"{where}: {numbers}."]
    if study.evaluation.site_metrics == "raw":
        lines.append(
            "Sites' own metrics were sent raw, NOT PRIVATE; they are not in this card."
        )
    return "\n\n".join(lines)


def _cell(text: str) -> str:
    """Text that a study gives, as it may stand in a table: it makes no markup of its own."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|[]<>*_`#!" else c for c in line)
