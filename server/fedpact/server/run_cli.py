"""`fedpact run`: propose studies; start, list, watch, stop and resume runs, on the coordinator's machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpact.server.cli import DEFAULT_HOME, Format, HomeOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

run_app = typer.Typer(
    no_args_is_help=True, help="Start, watch, stop and resume runs of studies."
)


StudyFile = Annotated[Path, typer.Argument(help="The study file.")]
Proposed = Annotated[str, typer.Argument(help="The study's name, or how its digest begins.")]


@run_app.command()
def propose(
    study: StudyFile,
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002 - the option's name
) -> None:
    """Propose a study to the institutions that it names; they sign it, or refuse."""
    import json

    from fedpact.server.starting import propose as propose_study

    proposed = propose_study(home, study)
    if format == "json":
        typer.echo(json.dumps({"study_digest": proposed.digest}))
        return
    digest = proposed.digest[:12]
    typer.echo(
        f"{proposed.study.name} is proposed: {proposed.digest}\n"
        f"Each institution types `fedpact client show {digest}`, then "
        f"`fedpact client approve {digest}`."
    )


@run_app.command()
def studies(
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
) -> None:
    """List the studies that were proposed, who has signed them and what is missing."""
    import json

    from rich.console import Console
    from rich.table import Column, Table

    from fedpact.common.identity import Role
    from fedpact.server import pact
    from fedpact.server.home import ServerHome
    from fedpact.server.roles import COORDINATOR
    from fedpact.server.tables import transaction

    with transaction(ServerHome(home).open_database()) as session:
        found = pact.list_for(session, COORDINATOR, Role.COORDINATOR)
    if format == "json":
        typer.echo(json.dumps([pact.as_json(p) for p in found], indent=2, ensure_ascii=False))
        return
    table = Table(Column("digest", overflow="fold"), "study", "state", "signed", "missing")
    for p in found:
        signed = f"{len(p.standing.signed)} of {len(p.study.institutions)}"
        missing = "; ".join(p.standing.missing)
        table.add_row(
            p.study.digest[:12], p.study.study.name, p.standing.state, signed, missing
        )
    Console(markup=False).print(table)


@run_app.command()
def end(study: Proposed, home: HomeOption = DEFAULT_HOME) -> None:
    """End a study: a run of it stops before its next round, and no other starts."""
    from fedpact.server import pact

    _close(home, study, pact.end, "has ended")


@run_app.command()
def recall(study: Proposed, home: HomeOption = DEFAULT_HOME) -> None:
    """Take a proposal back: nobody need decide on it any more, and no run of it starts."""
    from fedpact.server import pact

    _close(home, study, pact.recall, "was taken back")


def _close(home: Path, study: str, how: "Callable[[Session, str], None]", what: str) -> None:
    from fedpact.server import pact
    from fedpact.server.home import ServerHome
    from fedpact.server.tables import transaction

    with transaction(ServerHome(home).open_database()) as session:
        found = pact.find(session, study).study
        how(session, found.digest)
    typer.echo(f"The study {found.study.name} ({found.digest[:12]}) {what}.")


@run_app.command()
def start(
    study: StudyFile,
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Fail at once if the study is not agreed.")
    ] = False,
) -> None:
    """Start a run of a study: proposes it if need be, and waits until it is agreed."""
    import json

    from fedpact.common.cli import home_option
    from fedpact.server.starting import start_run

    def waiting(words: str) -> None:
        typer.echo(words, err=True)

    run = start_run(home, study, None if no_wait else waiting)
    if format == "json":
        typer.echo(json.dumps({"run": run}))
    else:
        watching = f"fedpact run watch {run}{home_option(home, DEFAULT_HOME)}"
        typer.echo(f"Run {run} has started. `{watching}` shows it.")


@run_app.command("list")
def list_(
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
) -> None:
    """List all runs, the newest first."""
    import json

    from rich.console import Console
    from rich.table import Column, Table

    from fedpact.server import runs
    from fedpact.server.home import ServerHome
    from fedpact.server.liveness import settle

    server = ServerHome(home)
    engine = server.open_database()
    views = [settle(server, engine, view) for view in runs.list_runs(engine)]
    if format == "json":
        rows = [
            {"run": v.id, "study": v.study.study.name, "status": v.status, "message": v.message}
            for v in views
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(Column("run", overflow="fold"), "study", "status", "rounds", "message")
    for v in views:
        done = sum(r.seconds is not None for r in v.rounds)
        rounds = f"{done}/{v.study.training.rounds}"
        table.add_row(v.id, v.study.study.name, v.status, rounds, v.message)
    Console().print(table)


@run_app.command()
def watch(
    run: Annotated[
        str | None, typer.Argument(help="Which run; the newest if not given.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
) -> None:
    """Show a run while it goes on, then its results."""
    from rich.console import Console

    from fedpact.common.errors import RunError
    from fedpact.server import runs
    from fedpact.server.home import ServerHome
    from fedpact.server.results import RunResult, overview
    from fedpact.server.watch import watch as watch_run

    server = ServerHome(home)
    engine = server.open_database()
    if run is None:
        views = runs.list_runs(engine)
        if not views:
            raise RunError("There are no runs yet.", advice="`fedpact run start` starts one.")
        run = views[0].id
    view = watch_run(server, engine, run)
    if format == "json":
        typer.echo(RunResult.of(view).model_dump_json(indent=2))
    else:
        Console().print(overview(view))
    if view.status in {"failed", "interrupted"}:
        raise RunError(f"The run is {view.status}: {view.message}")


@run_app.command()
def report(
    run: Annotated[
        str | None, typer.Argument(help="Which run; the newest if not given.")
    ] = None,
    simulation: Annotated[
        Path | None,
        typer.Option(help="The folder of a simulation, in the place of the coordinator's."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this PNG file.")] = None,
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
) -> None:
    """Say what a run was worth: as far as a coordinator may know, or of a simulation to each site."""
    from rich.console import Console

    from fedpact.server.report import draw, read_report, tables

    report = read_report(home, simulation, run)
    if plot is not None:
        draw(report, plot)
    if format == "json":
        typer.echo(report.model_dump_json(indent=2))
    else:
        Console().print(tables(report))


@run_app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Which run.")],
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
) -> None:
    """Go on with a run that was interrupted or has failed, at the round it was in."""
    import json

    from fedpact.common.cli import home_option
    from fedpact.server.resuming import resume_run

    view = resume_run(home, run)
    if format == "json":
        typer.echo(json.dumps({"run": run, "round": view.next_round}))
        return
    watching = f"fedpact run watch {run}{home_option(home, DEFAULT_HOME)}"
    typer.echo(
        f"Run {run} goes on at round {view.next_round} of {view.study.training.rounds}. "
        f"`{watching}` shows it."
    )


@run_app.command()
def stop(
    run: Annotated[str, typer.Argument(help="Which run.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Ask a run to stop after the round it is in; its adapter so far is kept."""
    from fedpact.server import runs
    from fedpact.server.home import ServerHome

    runs.request_stop(ServerHome(home).open_database(), run)
    typer.echo(f"Run {run} stops after the round it is in.")
