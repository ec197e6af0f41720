"""`fedpact client audit`: the site attacks its own training, before it trusts it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedpact.client.dataset_cli import DEFAULT_HOME, Format, HomeOption, console, notices

if TYPE_CHECKING:
    from fedpact.client.audit import Audit
    from fedpact.client.home import ClientHome
    from fedpact.client.membership import Membership, Separation
    from fedpact.client.workbench import Workbench
    from fedpact.common.records import EncodedRecords
    from fedpact.common.study import Study

_GUESSED = 20  # one canary of so many, unless told
_MOST_RECORDS = 1000
_NOTE = (
    "A shadow copy was attacked: nothing was sent and nothing spent. This result comes from "
    "private data: keep it."
)
_PAID = (
    "A shadow copy was attacked, and its ε is in the ledger. The file may be shown to others; what is "
    "said of membership here may not: it comes from private data."
)


def audit(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    dataset: Annotated[
        str | None,
        typer.Option(help="The data set's name; the one that the study means by default."),
    ] = None,
    institution: Annotated[
        str | None,
        typer.Option(help="As which of the study's institutions; this site's by default."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=1, help="Canaries, each put in by a fair coin.")
    ] = 2000,
    guesses: Annotated[
        int | None,
        typer.Option(min=1, help="How many of them are guessed; a twentieth by default."),
    ] = None,
    canary_records: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Records of each canary: 50 where the study promises to persons, otherwise one. "
            "More show what a promise to records is to a person with so many.",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="That of the lower bound on ε.")] = 0.95,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Audit the study as if it promised this ε: a small promise is easier to refute."
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Shadow adapters for the membership attack, an even number; 0: by loss alone.",
        ),
    ] = 4,
    save: Annotated[
        Path | None, typer.Option(help="Write the verdict there, signed by this institution.")
    ] = None,
    release: Annotated[
        bool,
        typer.Option(
            "--release",
            help="With --save: others may see the verdict. The ledger then reserves its ε first.",
        ),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    format_: Format = "table",
) -> None:
    """Attack a shadow copy of the study's training here: is ε what it is said to be?"""
    from fedpact.client import membership
    from fedpact.client.audit import audit as attack
    from fedpact.client.home import ClientHome
    from fedpact.client.workbench import Workbench
    from fedpact.common import study as studies
    from fedpact.common.errors import StudyError, TrainingError, UsageError

    site, loaded = ClientHome.at(home), studies.load(study)
    if not loaded.is_private:
        raise StudyError(f"{loaded.study.name} promises no ε that an audit could contradict.")
    asked = loaded.digest
    if epsilon is not None:
        loaded = loaded.promising(epsilon)
    name, workbench = institution or _joined_as(site), Workbench()
    loaded.institution(name)
    if release:
        from fedpact.client.audit_verdict import pay

        if save is None:
            raise UsageError("--release needs --save.")
        pay(site, loaded, name, dataset)
    with notices.status("Reading the records") as status:
        records = _records(site, loaded, dataset, workbench)
        found = attack(
            loaded,
            name,
            records,
            workbench,
            canaries=canaries,
            guesses=guesses or max(1, canaries // _GUESSED),
            canary_records=canary_records,
            confidence=confidence,
            on_round=lambda n: status.update(f"Round {n} of {loaded.training.rounds}"),
        )
        members = membership.attack(
            loaded,
            name,
            records,
            workbench,
            shadows=shadows,
            on_training=lambda n: status.update(f"Membership: training {n} of {1 + shadows}"),
        )
    if save is not None:
        from fedpact.client.audit_verdict import save as save_verdict

        save_verdict(save, site, asked, name, found, loaded.unit, None if release else members)
    verdict = _verdict(found, loaded.unit)
    if format_ == "json":
        document = _as_json(found, members, loaded.unit, verdict)
        print(json.dumps(document, indent=2, ensure_ascii=False))  # noqa: T201 - for programs
    else:
        _print(found, members, loaded.unit)
        console.print(f"{verdict} {_PAID if release else _NOTE}")
    if found.contradicted:
        raise TrainingError(
            "The training here loses more privacy than is accounted for.",
            advice="Take part in no private study with this installation, and report it.",
        )


def _joined_as(site: "ClientHome") -> str:
    from fedpact.client.join import load_site

    return load_site(site).institution


def _records(
    site: "ClientHome", study: "Study", dataset: str | None, workbench: "Workbench"
) -> "EncodedRecords":
    """The records of the shadow copy: the data set's, or a random part of a large one.

    Persons are in it whole or not at all.
    """
    import numpy as np

    from fedpact.client.datasets import Datasets, find_dataset
    from fedpact.client.record_cache import encode
    from fedpact.client.validation import split
    from fedpact.common.randomness import SecureRandom

    datasets = Datasets(site.open_database())
    chosen = find_dataset(datasets, study) if dataset is None else datasets.get(dataset)
    encoded = encode(site, chosen, study, workbench.model(study).tokenizer)
    records = split(study, encoded).training
    owners = records.owners
    place = SecureRandom().permutation(int(owners.max(initial=-1)) + 1)[owners]
    held = np.cumsum(np.bincount(place))
    most = max(1, int(np.searchsorted(held, _MOST_RECORDS, side="right")))
    return records.select(np.flatnonzero(place < most))


def _verdict(found: "Audit", unit: str) -> str:
    sure = f"With {100 * found.confidence:.4g} % confidence"
    at = f"at δ = {found.delta:.3g}, for adding or removing one {unit}"
    if found.contradicted:
        return (
            f"{sure} the promise is broken: ε is above {found.bound:.4g}, and "
            f"{found.covered:.4g} is claimed, {at}."
        )
    if found.bound > found.claimed:
        return (
            f"{sure} ε is above {found.bound:.4g} for a person with {found.canary_records} records: "
            f"the {found.claimed:.4g} claimed, {at}, does not hold for such a person, "
            f"for whom {found.covered:.4g} follows from it."
        )
    if found.ceiling <= found.claimed:
        return (
            f"Nothing contradicts the claim, but nothing could have: even if every guess were "
            f"right, ε would only be shown to be above {found.ceiling:.4g}, {at}. Take more guesses, "
            "or audit a smaller --epsilon."
        )
    return (
        f"The attack does not contradict the claim. {sure} ε is above {found.bound:.4g}, {at}; that "
        f"it is not above {found.claimed:.4g} is for the accountant to prove, not for an attack."
    )


def _print(found: "Audit", members: "Membership", unit: str) -> None:
    table = Table("what", "value")
    table.add_row(
        "claimed ε",
        f"{found.claimed:.4g} at δ = {found.delta:.3g}, for one {unit} (add or remove one {unit})",
    )
    if found.covered != found.claimed:
        table.add_row(
            f"for a person with {found.canary_records} records",
            f"{found.covered:.4g}, which follows from it",
        )
    table.add_row(
        "lower bound on ε", f"{found.bound:.4g}, with {100 * found.confidence:.4g} % confidence"
    )
    table.add_row("the most it could show", f"{found.ceiling:.4g}")
    table.add_row(
        "guesses right",
        f"{found.correct} of {found.guesses}, on {found.canaries} canaries "
        f"with {found.canary_records} record{'s' * (found.canary_records > 1)} each",
    )
    for name, attack in (("loss", members.by_loss), ("likelihood ratio", members.by_ratio)):
        if attack is not None:
            table.add_row(
                f"membership by {name}",
                f"AUC {attack.auc:.3f}, found {attack.tpr:.1%} at 1 % false, "
                f"on {members.units} {unit.split(maxsplit=1)[0]}s",
            )
    console.print(table)


def _as_json(
    found: "Audit", members: "Membership", unit: str, verdict: str
) -> dict[str, object]:
    def measured(attack: "Separation | None") -> dict[str, float] | None:
        if attack is None:
            return None
        return {"auc": attack.auc, "tpr_at_1_percent_fpr": attack.tpr}

    return {
        "claimed_epsilon": found.claimed,
        "delta": found.delta,
        "unit": unit,
        "neighbours": f"add or remove one {unit}",
        "covered_epsilon": found.covered,
        "lower_bound": found.bound,
        "confidence": found.confidence,
        "ceiling": found.ceiling,
        "canaries": found.canaries,
        "canary_records": found.canary_records,
        "guesses": found.guesses,
        "correct": found.correct,
        "contradicted": found.contradicted,
        "membership": {
            "units": members.units,
            "loss": measured(members.by_loss),
            "likelihood_ratio": measured(members.by_ratio),
        },
        "verdict": verdict,
    }
