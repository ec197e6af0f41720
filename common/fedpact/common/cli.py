"""`fedpact study`: write, check and show study files; and what all commands print alike."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

study_app = typer.Typer(no_args_is_help=True, help="Write, check and show study files.")

MetricsPort = Annotated[
    int | None,
    typer.Option(
        envvar="FEDPACT_METRICS_PORT",
        min=1,
        max=65535,
        help="Serve metrics for Prometheus on this port, of loopback unless told otherwise.",
    ),
]
StudyFile = Annotated[Path, typer.Argument(help="The study file.")]


def home_option(home: Path, default: Path) -> str:
    """What a command that is printed needs to find the same folder; empty for the default."""
    return "" if home == default else f" --home {shlex.quote(str(home))}"


@study_app.command()
def new(
    study: StudyFile = Path("study.toml"),
    task: Annotated[
        str, typer.Option(help="What kind of model is fine-tuned: `[task] name`.")
    ] = "text-classification",
) -> None:
    """Write a commented study file to start from."""
    from fedpact.common.errors import StudyError
    from fedpact.common.study_template import template

    if study.exists():
        raise StudyError(f"{study} exists already.", advice="Name another file.")
    try:
        study.write_text(template(task), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{study} cannot be written: {error.strerror}.") from error
    typer.echo(f"Wrote {study}. Edit it, then `fedpact study check {study}`.")


@study_app.command()
def check(study: StudyFile) -> None:
    """Say everything that is wrong with a study file, each with its line."""
    from fedpact.common import study as studies

    loaded = studies.load(study)
    typer.echo(f"{study} is a valid study.\ndigest {loaded.digest}")


@study_app.command()
def show(
    study: StudyFile,
    format: Annotated[Literal["table", "json"], typer.Option(help="How to print.")] = "table",  # noqa: A002
) -> None:
    """Show a study with every default filled in, and its digest."""
    import json

    import tomli_w

    from fedpact.common import study as studies

    loaded = studies.load(study)
    document = loaded.model_dump(mode="json", exclude_none=True)
    if format == "json":
        typer.echo(json.dumps({"digest": loaded.digest, "study": document}, indent=2))
    else:
        typer.echo(f"# digest {loaded.digest}\n{tomli_w.dumps(document)}")
