"""`fedpact client studies`, `show`, `approve` …: what is asked of this institution, its answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from fedpact.client.dataset_cli import DEFAULT_HOME, Format, HomeOption, console, notices

if TYPE_CHECKING:
    from fedpact.client.agreements import Shown
    from fedpact.client.correspondence import Desk
    from fedpact.common.agreement import Kind

StudyArgument = Annotated[
    str, typer.Argument(help="The study's name, or how its digest begins.")
]
WhyOption = Annotated[str, typer.Option("--why", help="Why; everyone who takes part sees it.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def studies(home: HomeOption = DEFAULT_HOME, format_: Format = "table") -> None:
    """List the studies that concern this institution, how they stand and what it decided."""
    rows = [
        {
            "study_digest": shown.study.digest,
            "study": shown.study.study.name,
            "proposer": shown.heard.proposer,
            "state": shown.heard.state,
            "here": shown.own.kind if shown.own else "undecided",
            "missing": list(shown.heard.missing),
            "heard_at": shown.heard_at.isoformat(timespec="seconds"),
        }
        for shown in _desk(home).agreements.list()
    ]
    if format_ == "json":
        _print_json(rows)
        return
    if not rows:
        console.print("No study was proposed to this institution yet.")
        return
    table = Table(
        Column("digest", overflow="fold"), "study", "proposer", "state", "here", "missing"
    )
    for row in rows:
        cells = [str(row[key]) for key in ("study", "proposer", "state", "here")]
        table.add_row(
            str(row["study_digest"])[:12], *cells, "; ".join(map(str, row["missing"]))
        )
    console.print(table)


def show(
    study: StudyArgument, home: HomeOption = DEFAULT_HOME, format_: Format = "table"
) -> None:
    """Show in plain words what a study asks of this institution, and how it stands."""
    desk = _desk(home)
    lines = _summary(desk, desk.agreements.find(study))
    if format_ == "json":
        _print_json(lines)
    else:
        _print_lines(lines)


def approve(
    study: StudyArgument, yes: YesOption = False, home: HomeOption = DEFAULT_HOME
) -> None:
    """Sign a study: from now on this site answers requests of exactly this study."""
    from fedpact.client.summary import objection
    from fedpact.common.errors import PolicyError

    desk = _desk(home)
    shown = desk.agreements.find(study)
    _print_lines(_summary(desk, shown))
    if why := objection(desk.home, shown.study, desk.institution):
        raise PolicyError(
            f"Your policy forbids this study: {why}",
            advice=f"Change {desk.home.policy} first, if you mean to.",
        )
    _confirm(f"Sign it as {desk.institution}?", yes)
    _decide(desk, shown, "approve")


def refuse(
    study: StudyArgument,
    why: WhyOption,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Refuse a study, and say why."""
    desk = _desk(home)
    _decide(desk, desk.agreements.find(study), "refuse", why)


def withdraw(
    study: StudyArgument, why: WhyOption = "", home: HomeOption = DEFAULT_HOME
) -> None:
    """Take an approval back: this site answers no further request of the study."""
    from fedpact.common.errors import StudyError

    # What was approved is known here: a coordinator that is away must not hold this up.
    desk = _own_desk(home)
    try:
        shown = desk.agreements.find(study)
    except StudyError:
        shown = _desk(home).agreements.find(study)
    _decide(desk, shown, "withdraw", why)


def consent(
    study: StudyArgument, yes: YesOption = False, home: HomeOption = DEFAULT_HOME
) -> None:
    """Consent to a study, as an auditor."""
    desk = _desk(home)
    shown = desk.agreements.find(study)
    _print_lines(_summary(desk, shown))
    _confirm(f"Consent to it as {desk.institution}?", yes)
    _decide(desk, shown, "consent")


def veto(study: StudyArgument, why: WhyOption, home: HomeOption = DEFAULT_HOME) -> None:
    """Veto a study, as an auditor: no round of it is run while the veto stands."""
    desk = _desk(home)
    _decide(desk, desk.agreements.find(study), "veto", why)


def propose(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Propose a study to the institutions that it names, as a researcher."""
    from fedpact.client.correspondence import Desk
    from fedpact.client.home import ClientHome
    from fedpact.common import study as files

    loaded = files.load(study)
    with notices.status("Asking the coordinator"):
        shown = Desk.of(ClientHome.at(home)).propose(loaded)
    console.print(f"{loaded.study.name} is {shown.heard.state}: {loaded.digest}")


def results(study: StudyArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Print the results of a study's runs, as JSON."""
    desk = _desk(home)
    print(desk.plane.results(desk.agreements.find(study).study.digest))  # noqa: T201 - to be read by programs


def add_to(app: typer.Typer) -> None:
    """Make these commands those of an app."""
    for command in (
        studies,
        show,
        approve,
        refuse,
        withdraw,
        consent,
        veto,
        propose,
        results,
        statements,
    ):
        app.command()(command)


def statements(home: HomeOption = DEFAULT_HOME, format_: Format = "table") -> None:
    """For an auditor: what studies have cost at each institution, as each has signed it."""
    from fedpact.client.accounts import listed
    from fedpact.client.home import ClientHome
    from fedpact.common.spending import table

    found = listed(ClientHome.at(home))
    if format_ == "json":
        _print_json([spending.model_dump(mode="json") for spending in found])
    else:
        console.print(table(found))


def _desk(folder: Path) -> "Desk":
    """This institution's correspondence, with what is new at the coordinator."""
    desk = _own_desk(folder)
    with notices.status("Asking the coordinator"):
        away = desk.catch_up()
    if away:
        notices.print(f"{away} Shown is what was last heard of it.")
    return desk


def _own_desk(folder: Path) -> "Desk":
    """This institution's correspondence as it lies here."""
    from fedpact.client.correspondence import Desk
    from fedpact.client.home import ClientHome

    return Desk.of(ClientHome.at(folder))


def _summary(desk: "Desk", shown: "Shown") -> dict[str, str]:
    from fedpact.client.summary import summary

    with notices.status("Reading the study"):
        return summary(desk.home, shown, desk.institution, desk.role)


def _decide(desk: "Desk", shown: "Shown", kind: "Kind", why: str = "") -> None:
    away = desk.decide(shown.study, kind, why)
    named = f"{shown.study.study.name} ({shown.study.digest[:12]})"
    console.print(f"Signed: {desk.institution}, {kind}, {named}.")
    if away:
        notices.print(
            f"{away} It holds here from now on, and is sent as soon as `fedpact client up` "
            "reaches the coordinator."
        )


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


def _print_lines(lines: dict[str, str]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, words in lines.items():
        table.add_row(what, words)
    console.print(table)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - to be read by programs
