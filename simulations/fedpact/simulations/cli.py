"""The command line: every room's verbs under one name.

Nothing heavy is imported here or in the rooms' command modules until a verb runs.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedpact.client.cli import client_app
from fedpact.common.cli import study_app
from fedpact.common.errors import FedpactError
from fedpact.server.cli import server_app
from fedpact.server.release_cli import release_app
from fedpact.server.run_cli import run_app
from fedpact.simulations.audit_cli import audit_app
from fedpact.simulations.plan_cli import plan

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Institutions that may not share data fine-tune one BERT together.",
)
study_app.command()(plan)
app.add_typer(study_app, name="study")
app.add_typer(server_app, name="server")
app.add_typer(run_app, name="run")
app.add_typer(release_app, name="release")
app.add_typer(client_app, name="client")
app.add_typer(audit_app, name="audit")

Format = Annotated[Literal["table", "json"], typer.Option(help="How to print the result.")]


@app.command()
def demo(
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of the run.")] = None,
    records: Annotated[
        int | None, typer.Option(min=100, help="Records at each institution.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with your own files, one per institution."),
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where the demo keeps everything; made anew each time.")
    ] = Path("fedpact-demo"),
    format: Format = "table",  # noqa: A002 - the option's name
) -> None:
    """Run a whole federation on this machine, for real: a coordinator and three institutions."""
    from fedpact.simulations.demo import Demo, run_demo

    run_demo(Demo(folder, rounds=rounds, records=records, data=data), as_json=format == "json")


@app.command()
def simulate(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A CSV, JSON lines or Parquet file; by default one beside the study."
        ),
    ] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="How many sites.")] = None,
    partition: Annotated[
        str, typer.Option(help="iid, dirichlet:ALPHA, quantity:ALPHA or column:NAME.")
    ] = "iid",
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of partition, sampling and noise; compared, of the adapter too."
        ),
    ] = 0,
    grid: Annotated[
        Literal["process", "ray"], typer.Option(help="One process, or Flower's Ray backend.")
    ] = "process",
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where to keep the run, by default a new folder; or the comparison, which goes on "
            "with what is there."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="A key of the study and the values to compare, such as "
            "aggregation.method=ffa-lora,fedavg; several make a grid."
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            help="A key and values: each variant takes the best on records held out from training."
        ),
    ] = None,
    tune_seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="With --tune: how many seeds each value is tried with; the best mean is taken.",
        ),
    ] = 1,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="With --compare or --tune: how many seeds, from --seed on."),
    ] = 3,
    jobs: Annotated[
        int, typer.Option(min=1, help="With --compare or --tune: in how many processes.")
    ] = 1,
    alone: Annotated[
        Literal["no", "plain", "dp"],
        typer.Option(
            help="Also train each site alone, without noise or with the study's: was it worth joining? "
            "Not with --compare or --tune."
        ),
    ] = "no",
    test: Annotated[
        Path | None,
        typer.Option(
            help="Test records for --alone, dealt out by the column of --partition, if it names one."
        ),
    ] = None,
    format: Format = "table",  # noqa: A002
) -> None:
    """Run a study among simulated sites, in one process or on Ray, or compare variants of it."""
    from fedpact.simulations.simulate import Simulation, run_simulation

    asked = Simulation(
        study,
        data=data,
        sites=sites,
        partition=partition,
        seed=seed,
        grid=grid,
        folder=folder,
        alone=alone,
        test=test,
    )
    if not (compare or tune):
        run_simulation(asked, as_json=format == "json")
        return
    from fedpact.simulations.compare_cli import run_comparison

    run_comparison(
        asked,
        axes=compare or (),
        tune=tune or (),
        tune_seeds=tune_seeds,
        seeds=seeds,
        jobs=jobs,
        as_json=format == "json",
    )


def main() -> None:
    """Run the command line; errors end in one clear sentence and a documented exit code."""
    # What gRPC would print beside it, our errors say in a sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except FedpactError as error:
        typer.secho(f"fedpact: {error.message}", fg=typer.colors.RED, err=True)
        if error.advice:
            typer.echo(error.advice, err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("fedpact: stopped.", err=True)
        sys.exit(130)
