"""`fedpact release`: make a run's adapter and its card into a signed folder; verify one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedpact.server.cli import DEFAULT_HOME, Format, HomeOption

release_app = typer.Typer(no_args_is_help=True, help="Release adapters with their cards.")


@release_app.command()
def build(
    run: Annotated[str, typer.Argument(help="Which run.")],
    verdict: Annotated[
        list[Path] | None,
        typer.Option(
            help="An audit's verdict, as an institution released it; may be repeated."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where; `releases/RUN` in the coordinator's folder.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make a folder with the adapter, its card and the coordinator's signature."""
    from fedpact.common.database import disk_errors
    from fedpact.server import releases
    from fedpact.server.home import ServerHome, load_signing_key

    server = ServerHome(home)
    with disk_errors():
        verdicts = [path.read_text(encoding="utf-8") for path in verdict or []]
    where = folder or server.releases / run
    releases.build(server.open_database(), run, load_signing_key(server), where, verdicts)
    typer.echo(
        f"{where}\nIts card is {where / releases.CARD}: read it before you give it away."
    )


@release_app.command("list")
def list_(
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002 - the option's name
) -> None:
    """List the releases in the coordinator's folder; each is verified."""
    from rich.console import Console
    from rich.table import Column, Table

    from fedpact.server import releases
    from fedpact.server.home import ServerHome, load_signing_key

    server = ServerHome(home)
    key = load_signing_key(server).public_key()
    folders = sorted(path.parent for path in server.releases.glob(f"*/{releases.DOCUMENT}"))
    found = [(folder, releases.verify(folder, key)) for folder in folders]
    if format == "json":
        rows = [{"folder": str(folder), **vars(release)} for folder, release in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(
        Column("run", overflow="fold"),
        Column("study", overflow="fold"),
        Column("folder", overflow="fold"),
    )
    for folder, release in found:
        table.add_row(release.run, release.study_digest[:12], str(folder))
    Console(markup=False).print(table)


@release_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The release.")],
    key: Annotated[
        str | None,
        typer.Option(
            help="The coordinator's public key in hexadecimal, as `site.toml` has it."
        ),
    ] = None,
) -> None:
    """Check that a release is as the coordinator signed it."""
    from fedpact.common import identity
    from fedpact.common.errors import UsageError
    from fedpact.server import releases

    try:
        known = identity.verify_key(bytes.fromhex(key)) if key else None
    except ValueError as error:
        raise UsageError("The key is not hexadecimal.") from error
    release = releases.verify(folder, known)
    whose = "this coordinator's" if known else "NOT KNOWN to be anyone's (give --key)"
    typer.echo(
        f"The files of run {release.run} are as they were signed, with the key {release.key}: "
        f"{whose}."
    )
