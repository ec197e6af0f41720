"""What the site's policy makes of a study, and what it says in plain words. Pure.

Reasons go to the coordinator, so they name the rule and never a number that only the site
knows.
"""

import re
from datetime import datetime, timedelta

from fedpact.client.policy import Policy
from fedpact.common.errors import PolicyError
from fedpact.common.study import Study
from fedpact.common.study_parties import Institution

# `name` or `organisation/name`, as on the Hugging Face hub: never a way through folders.
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check(policy: Policy, study: Study, institution_name: str, records: int) -> None:
    """Whether the institution allows a study with a data set of `records` records.

    Raises:
        PolicyError: it does not; the message is the first rule that the study breaks.
        StudyError: the institution does not take part in the study.
    """
    study.institution(institution_name)
    if policy.studies != "any" and study.digest not in policy.studies:
        raise PolicyError(f"The study {study.digest[:12]} is not among those allowed here.")
    if study.task.name not in policy.tasks:
        raise PolicyError(f"The task {study.task.name} is not allowed here.")
    if study.study.use not in policy.uses:
        raise PolicyError(f"A study for {study.study.use} is not allowed here.")
    _check_company(policy, study, institution_name)
    _check_model(policy, study)
    _check_privacy(policy, study)
    if study.evaluation.site_metrics == "raw" and not policy.allow_site_metrics:
        raise PolicyError(
            "The study asks for raw metrics on the site's own records, which are not private "
            "and not allowed here."
        )
    if records < policy.minimum_records:
        raise PolicyError(
            f"The data set has fewer than the {policy.minimum_records} records that are asked "
            "for here."
        )


def check_hours(policy: Policy, now: datetime) -> None:
    """Whether a round may begin to train.

    Args:
        policy: the site's rules.
        now: the moment, on the site's own clock, with its time zone.

    Raises:
        PolicyError: these are quiet hours; it says when they end.
    """
    if policy.quiet is None:
        return
    start, end = policy.quiet
    clock = now.time().replace(tzinfo=None)
    spans_midnight = start > end
    quiet = (clock >= start or clock < end) if spans_midnight else start <= clock < end
    if quiet:
        until = now.replace(hour=end.hour, minute=end.minute, second=0, microsecond=0)
        if until <= now:
            until += timedelta(days=1)
        raise PolicyError(
            f"These are quiet hours here; they end at {until.isoformat(timespec='minutes')}."
        )


def check_seed(policy: Policy, seeded: bool) -> None:
    """Whether a site whose noise comes from a seed may train.

    Raises:
        PolicyError: its noise does, and it may not.
    """
    if seeded and not policy.allow_insecure_seed:
        raise PolicyError(
            "This site was started with FEDPACT_INSECURE_SEED, which its policy forbids.",
            advice="Start it without; the seed is for tests with invented records.",
            told="The site is not set up for private training.",
        )


def in_words(policy: Policy) -> list[str]:
    """What the rules mean, one sentence each, for the person who is to answer for them."""
    per_study = policy.study_cap
    models = f"one of {len(policy.models)} base models" if policy.models else "any base model"
    return [
        "A person here agrees to each study before it may run."
        if policy.approval == "person"
        else "The site itself agrees to every study that these rules allow.",
        f"A study may do {_listed(policy.tasks)}, for {_listed(policy.uses)}.",
        f"The other institutions may be of {_listed(policy.sectors)}; "
        + (
            "whoever they are."
            if policy.institutions == "any"
            else f"only {_listed(policy.institutions)}."
        ),
        "A release may go to others than those who take part."
        if policy.allow_outside_recipients
        else "A release may go only to those who take part.",
        f"It may use {models}; "
        + (
            "it may name a folder of your disk."
            if policy.models or policy.allow_model_folders
            else "it may not name a folder of your disk."
        ),
        "It must name the SHA-256 of its base model."
        if policy.require_model_sha256 or policy.models
        else "It need not name the SHA-256 of its base model, so weights can be swapped unseen.",
        "Updates must be differentially private."
        if policy.require_dp
        else "NOT PRIVATE: updates may leave without noise, and can give away records.",
        "The promise must be to persons, with all their records."
        if policy.required_unit == "person"
        else "The promise may be to single records: who has several is then protected less.",
        (f"A data set may spend {policy.most}; {per_study:g} of it on one study."),
        f"It must have {policy.minimum_records} records or more.",
        "NOT PRIVATE: raw loss and accuracy on your own records may leave."
        if policy.allow_site_metrics
        else "Raw loss and accuracy on your own records stay here.",
        "Any study may be run that fits these rules."
        if policy.studies == "any"
        else f"Only {len(policy.studies)} studies may be run, named by digest.",
        "An update leaves as soon as the gate has checked it."
        if policy.release == "automatic"
        else f"A person here lets each update leave, and has {policy.release_wait_minutes:g} "
        "minutes for it.",
        "NOT PRIVATE: noise may come from a seed, and who knows it can take the noise away."
        if policy.allow_insecure_seed
        else "Noise comes from the operating system's entropy, never from a seed.",
        f"No round begins to train in the hours {policy.quiet_hours}."
        if policy.quiet_hours
        else "Rounds may train at any hour.",
        (
            f"Training takes {policy.cpu_threads or 'as many as PyTorch chooses'} CPU threads and "
            f"at most {policy.gpu_memory_fraction:.0%} of a GPU's memory."
        ),
    ]


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words) or "nothing"


def _check_company(policy: Policy, study: Study, institution_name: str) -> None:
    """Who else takes part, and who gets what comes of it."""
    others: list[Institution] = [i for i in study.institutions if i.name != institution_name]
    for other in others:
        if other.sector not in policy.sectors:
            raise PolicyError(f"A study with {other.sector} is not allowed here: {other.name}.")
        if policy.institutions != "any" and other.name not in policy.institutions:
            raise PolicyError(f"A study with {other.name} is not allowed here.")
    if policy.allow_outside_recipients:
        return
    taking_part = {institution.name for institution in study.institutions}
    if outside := [name for name in study.governance.recipients if name not in taking_part]:
        raise PolicyError(
            f"The study's release would go to {outside[0]}, which does not take part in it; "
            "that is not allowed here."
        )


def _check_model(policy: Policy, study: Study) -> None:
    sha256 = study.model.sha256
    if sha256 is None and (policy.require_model_sha256 or policy.models):
        raise PolicyError("The study does not name the SHA-256 of its base model, as it must.")
    if policy.models and sha256 not in policy.models:
        raise PolicyError(f"The base model {study.model.base} is not among those allowed here.")
    is_folder = not _MODEL_ID.fullmatch(study.model.base)
    if is_folder and not (policy.models or policy.allow_model_folders):
        # Whoever names folders could feel its way about the site's disk.
        raise PolicyError(
            "The study's base model is a folder, which is allowed here only for models that the "
            "policy names by SHA-256.",
            advice="Name a Hugging Face id, or ask the site to put the SHA-256 into `models`.",
        )


def _check_privacy(policy: Policy, study: Study) -> None:
    if policy.required_unit == "person" and study.privacy.unit != "person":
        raise PolicyError(
            "The study promises nothing to persons, whose protection is required here.",
            advice='Propose it with `privacy.unit = "person"`.',
        )
    if not study.is_private:
        if policy.require_dp:
            raise PolicyError("The study has no differential privacy, which is required here.")
        return
    if study.privacy.target_delta > policy.max_delta:
        raise PolicyError(
            f"The study's δ = {study.privacy.target_delta:.3g} is above the "
            f"{policy.max_delta:.3g} that is allowed here."
        )
    if study.privacy.target_epsilon > policy.study_cap:
        raise PolicyError(
            f"The study's ε = {study.privacy.target_epsilon:.4g} is above the "
            f"{policy.study_cap:.4g} that is allowed here, at δ = "
            f"{study.privacy.target_delta:.3g}, for adding or removing one {study.unit}."
        )
