"""`fedpact run`: start, list, watch and stop runs, on the coordinator's machine."""

from pathlib import Path
from typing import Annotated

import typer

from fedpact.server.cli import DEFAULT_HOME, Format, HomeOption

run_app = typer.Typer(no_args_is_help=True, help="Start, watch and stop runs of studies.")


@run_app.command()
def start(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002 - the option's name
) -> None:
    """Start a run of a study among the institutions that it names."""
    import json

    from fedpact.common.cli import home_option
    from fedpact.server.starting import start_run

    run = start_run(home, study)
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
    from rich.table import Table

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
    table = Table("run", "study", "status", "rounds", "message")
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
def stop(
    run: Annotated[str, typer.Argument(help="Which run.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Ask a run to stop after the round it is in; its adapter so far is kept."""
    from fedpact.server import runs
    from fedpact.server.home import ServerHome

    runs.request_stop(ServerHome(home).open_database(), run)
    typer.echo(f"Run {run} stops after the round it is in.")
