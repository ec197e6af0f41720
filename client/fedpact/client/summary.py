"""A study in plain words: what an institution is asked, and what its own rules say to it."""

from collections.abc import Iterator, Mapping

from fedpact.client import policy, policy_check, statement
from fedpact.client.agreements import Shown
from fedpact.client.datasets import Dataset, Datasets, find_dataset
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.client.policy import Policy
from fedpact.common import agreement
from fedpact.common.errors import DataError, ModelError, PolicyError, StudyError
from fedpact.common.study import Study
from fedpact.common.study_parties import Institution

_FLOAT_BYTES = 4
_SAID = {
    "approve": "approved",
    "refuse": "refused",
    "withdraw": "withdrew",
    "consent": "consented",
    "veto": "vetoed",
}
_STAYS = {
    "none": "nothing is trained beside it",
    "private-head": "the head, which is trained here with the same noise and never sent",
    "fedsa-lora": "LoRA's B, and the head unless it is shared: trained with the same noise, never sent",
    "ditto": "a second adapter, trained WITHOUT NOISE: it must not leave the institution",
    "fine-tune": "after the run an adapter trained on WITHOUT NOISE: it must not leave the institution",
    "interpolate": "after the run an adapter trained WITHOUT NOISE: it must not leave the institution",
}


def objection(home: ClientHome, study: Study, institution: str) -> str:
    """Why the site's own rules do not allow a study; empty where they do.

    Raises:
        StorageError: the site's database cannot be read.
    """
    try:
        dataset = find_dataset(Datasets(home.open_database()), study)
        policy_check.check(policy.load(home.policy), study, institution, dataset.records)
    except (DataError, PolicyError, StudyError) as error:
        return str(error)
    return ""


def left_to_a_person(home: ClientHome, study: Study, institution: str) -> str:
    """Why the daemon does not approve a study by itself; empty where it does.

    Raises:
        StorageError: the site's database cannot be read.
    """
    try:
        rules = policy.load(home.policy)
    except PolicyError as error:
        return str(error)
    if rules.approval != "automatic":
        return f"`fedpact client show {study.digest[:12]}`, then approve or refuse."
    return objection(home, study, institution)


def summary(home: ClientHome, shown: Shown, institution: str, role: str) -> dict[str, str]:
    """What is asked and how it stands, as lines of (what, in words).

    Args:
        home: the site's folder.
        shown: the study.
        institution: this one.
        role: what it does in the federation.

    Raises:
        StorageError: the site's database cannot be read.
    """
    study = shown.study
    lines = {
        "study": f"{study.study.name}, digest {study.digest}",
        "proposed": f"by {shown.heard.proposer} on {shown.heard.proposed_at:%Y-%m-%d}",
        "purpose": f"{study.study.purpose or 'none is given'} (use: {study.study.use})",
        "task": f"{study.task.name}: {study.task.kind.in_words(study.task)}",
        "base model": f"{study.model.base}, {_content(study.model.sha256)}",
        "leaves a site": _leaves(study, _rank(study, institution)),
        "stays here": _STAYS[study.personalisation.method],
        "privacy": _privacy(study),
    }
    if study.adapter.start is not None:
        content = _content(study.adapter.start_sha256)
        lines["begins with"] = f"the coordinator's adapter {study.adapter.start}, {content}"
    if study.evaluation.contributions != "none":
        lines["is told"] = (
            "what each site's updates were worth on the public test set, to all who take part"
        )
    if role == "data-holder":
        lines["data set"] = _data(home, study)
    lines |= {
        "until": f"{study.governance.until or 'no last day'}",
        "takes part": "; ".join(
            f"{i.name} ({i.sector}, {_size(i)})" for i in study.institutions
        ),
        "release": f"to those who take part{_others(study)}",
        "state": shown.heard.state + _missing(shown),
        "signed": _signed(shown) or "by nobody yet",
        "here": f"you {_SAID[shown.own.kind]} it" if shown.own else "you have not decided",
    }
    if role == "data-holder":
        why = objection(home, study, institution)
        lines["your policy"] = f"forbids it: {why}" if why else "allows it"
    return {what: _printable(words) for what, words in lines.items()}


def _printable(words: str) -> str:
    """Words of other parties in one line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in words)


def _content(sha256: str | None) -> str:
    return f"SHA-256 {sha256}" if sha256 else "whatever it holds: the study names no SHA-256"


def _rank(study: Study, institution: str) -> int:
    """The rank of its adapter; the study's where it does not take part."""
    mine = [one.r for one in study.institutions if one.name == institution]
    return next(iter(mine), None) or study.adapter.r


def _leaves(study: Study, rank: int) -> str:
    rounds = study.training.rounds
    classes = ", and counts for each label," if study.evaluation.per_class else ""
    metrics = {
        "none": "no metrics",
        "private": f"also noisy loss and accuracy{classes} on the site's own records, paid for from ε",
        "raw": "also loss and accuracy on the site's own records, NOT PRIVATE",
    }[study.evaluation.site_metrics]
    return f"{rounds} times the change of {_tensors(study, rank)}; {metrics}"


def _size(institution: Institution) -> str:
    persons = f" of {institution.persons} persons" if institution.persons else ""
    rank = f", LoRA rank {institution.r}" if institution.r else ""
    return f"{institution.records} records{persons}{rank}"


def _tensors(study: Study, rank: int) -> str:
    """Which tensors a site sends, and how large they are together."""
    trained = {"LoRA's B": 0, "LoRA's A": 0, "the head": 0}
    try:
        sizes = _sizes(study, rank)
    except ModelError as error:
        return f"the adapter's tensors (their size is not known here: {error})"
    for name in sizes:
        kind = next((k for k in ("A", "B") if f".lora_{k}." in name), None)
        trained[f"LoRA's {kind}" if kind else "the head"] += 1
    kinds = ", ".join(f"{count} of {what}" for what, count in trained.items() if count)
    total = _FLOAT_BYTES * sum(sizes.values())
    turns = "; B and A in turn, one a round" if study.aggregation.method == "rolora" else ""
    return f"{len(sizes)} tensors ({kinds}), {total:,} bytes{turns}"


def _sizes(study: Study, rank: int) -> Mapping[str, int]:
    import warnings

    import torch

    from fedpact.common import model as models

    with warnings.catch_warnings():
        # What libraries say to their developers is not for the person who reads a study.
        warnings.simplefilter("ignore", FutureWarning)
        model = models.build(study, torch.device("cpu"))
    adapter = models.get_adapter(model).manifest.of_rank(rank)
    rounds = (1, 2)  # whatever a method trains, it trains in one of them
    return {
        name: size
        for name, size in zip(adapter.names, adapter.sizes, strict=True)
        if any(study.trains(name, number) for number in rounds)
        and study.personalisation.shares(name)
    }


def _privacy(study: Study) -> str:
    if not study.is_private:
        return "NONE: what leaves can give away records"
    return (
        f"ε ≤ {study.privacy.target_epsilon:g} at δ = {study.privacy.target_delta:g} for the "
        f"whole run: neighbouring data sets add or remove one {study.unit}"
    )


def _data(home: ClientHome, study: Study) -> str:
    engine = home.open_database()
    try:
        dataset = find_dataset(Datasets(engine), study)
        rules = policy.load(home.policy)
    except (DataError, PolicyError) as error:
        return str(error)
    return f"{dataset.name}, {dataset.records} records{_budget(Ledger(engine), dataset, rules)}"


def _budget(ledger: Ledger, dataset: Dataset, rules: Policy) -> str:
    spent = statement.statement(ledger, dataset, rules)
    return (
        f"; ε = {spent.remaining:.4g} of {spent.cap:.4g} remains of its budget, at δ = "
        f"{spent.delta:.3g}, for adding or removing one {spent.unit}"
    )


def _others(study: Study) -> str:
    recipients = study.governance.recipients
    return f", and to {', '.join(recipients)}" if recipients else " only"


def _missing(shown: Shown) -> str:
    return f": it lacks {'; '.join(shown.heard.missing)}" if shown.heard.missing else ""


def _signed(shown: Shown) -> str:
    return "; ".join(_decisions(shown))


def _decisions(shown: Shown) -> Iterator[str]:
    for decision in agreement.newest(shown.heard.decisions).values():
        reason = f" ({decision.reason})" if decision.reason else ""
        yield (
            f"{decision.institution} {_SAID[decision.kind]} on "
            f"{decision.moment:%Y-%m-%d %H:%M} UTC{reason}"
        )
