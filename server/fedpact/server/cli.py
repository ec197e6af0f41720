"""`fedpact server …`: make a coordinator, run it, invite institutions, see how things are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from fedpact.common.cli import MetricsPort

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from fedpact.server.control import Control
    from fedpact.server.home import ServerHome

server_app = typer.Typer(help="The coordinator.", no_args_is_help=True)
console = Console()

DEFAULT_HOME = Path("~/.fedpact/server")


Sector = Literal["academia", "industry", "government"]
InvitedRole = Literal["data-holder", "researcher", "auditor"]
HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="FEDPACT_SERVER_HOME", help="The coordinator's folder."),
]
Format = Annotated[Literal["table", "json"], typer.Option(help="How to print.")]


@server_app.command()
def init(
    *,
    home: HomeOption = DEFAULT_HOME,
    host: Annotated[
        str,
        typer.Option(help="The name or address by which institutions reach the coordinator."),
    ] = "localhost",
    port: Annotated[
        int, typer.Option(help="The port that their daemons dial.", min=1, max=65535)
    ] = 9443,
    service_port: Annotated[
        int,
        typer.Option(help="The port of the control plane, where they join.", min=1, max=65535),
    ] = 9444,
    listen: Annotated[
        str | None,
        typer.Option(help="The address to listen on; all, or loopback if the host is local."),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="An SQLAlchemy URL, for PostgreSQL; SQLite in the folder if not given."
        ),
    ] = None,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Only issue another server certificate from the same CA."),
    ] = False,
) -> None:
    """Make a coordinator's folder: settings, a CA of its own and a server certificate."""
    from fedpact.common.certificates import fingerprint, load_certificate
    from fedpact.common.cli import home_option
    from fedpact.server import home as homes

    server, here = homes.ServerHome(home), home_option(home, DEFAULT_HOME)
    if renew:
        homes.renew(server, server.settings().host)
        typer.echo(
            "A new server certificate was issued; a coordinator that is up takes it by itself."
        )
        return
    server = homes.init(home, host, port, service_port, database, listen)
    console.print(f"The coordinator {server.settings().address} is in {server.folder}.")
    console.print(f"Its CA has the fingerprint {fingerprint(load_certificate(server.ca))}.")
    # Unwrapped, as it is copied.
    typer.echo(
        f"Next: `fedpact server up{here}`, and `fedpact server invite NAME --sector …{here}`."
    )


@server_app.command()
def up(
    home: HomeOption = DEFAULT_HOME,
    metrics_port: MetricsPort = None,
    *,
    resume: Annotated[
        bool,
        typer.Option(
            help="Go on with the runs that were under way when it ended the last time."
        ),
    ] = True,
) -> None:
    """Run the coordinator until it is interrupted."""
    from fedpact.common import logs
    from fedpact.common.errors import FedpactError
    from fedpact.server import runs
    from fedpact.server.home import ServerHome
    from fedpact.server.resuming import go_on
    from fedpact.server.up import up as run

    server = ServerHome(home)

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201

    def see_to_runs(engine: "Engine", control: "Control") -> None:
        for view in runs.interrupt(engine):
            named = f"Run {view.id} of {view.study.study.name}"
            say(f"{named} is {view.status}: {view.message}")
            if not resume:
                continue
            try:
                went_on = go_on(server, engine, control, view.id, keep_stop=True)
            except FedpactError as error:
                say(f"{named} does not go on: {error}")
            else:
                say(f"{named} goes on at round {went_on.next_round}.")

    logs.configure()
    run(
        server,
        notice=say,
        after_start=see_to_runs,
        metrics_port=metrics_port,
    )


@server_app.command()
def status(
    *,
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002 - the option's name
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until interrupted.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="End with an error unless it is up.")
    ] = False,
) -> None:
    """Say whether the coordinator is up, who is there, what runs, how long certificates last."""
    from fedpact.common.errors import AddressError
    from fedpact.server import status as statuses
    from fedpact.server.home import ServerHome

    server = ServerHome(home)
    if watch:
        statuses.watch(server, console)
        return
    found = statuses.standing(server)
    if format == "json":
        _print_json(found)
    else:
        console.print(statuses.table(found))
    if check and found["superlink"] != "up":
        raise AddressError(
            f"The coordinator in {server.folder} is not up.",
            advice="`fedpact server up` starts it.",
        )


@server_app.command()
def invite(
    name: Annotated[str, typer.Argument(help="The institution, as studies will name it.")],
    sector: Annotated[Sector, typer.Option(help="What kind of organisation it is.")],
    home: HomeOption = DEFAULT_HOME,
    role: Annotated[
        InvitedRole, typer.Option(help="What it does: hold data, propose studies, or watch.")
    ] = "data-holder",
    days: Annotated[int, typer.Option(help="How long the token can be used.", min=1)] = 7,
) -> None:
    """Print the token with which an institution joins; it works once."""
    from datetime import timedelta

    from fedpact.common.certificates import fingerprint, load_certificate
    from fedpact.common.identity import Role
    from fedpact.common.study_parties import Sector as StudySector
    from fedpact.server import institutions
    from fedpact.server.home import ServerHome
    from fedpact.server.tables import transaction

    server = ServerHome(home)
    with transaction(server.open_database()) as session:
        token = institutions.invite(
            session,
            name,
            StudySector(sector),
            role=Role(role),
            address=server.settings().address,
            service=server.settings().service_address,
            fingerprint=fingerprint(load_certificate(server.ca)),
            valid_for=timedelta(days=days),
        )
    # Alone on standard output, unwrapped: it is copied, or piped on.
    print(token)  # noqa: T201
    Console(stderr=True).print(
        f"{name} joins with `fedpact client join TOKEN` within {days} days. "
        "Whoever holds the token may join in its name: send it as you would a password."
    )


@server_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The institution.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Withdraw an invitation, or shut an institution out at once: its site and its calls."""
    from contextlib import suppress

    from fedpact.common.errors import AddressError
    from fedpact.server import institutions
    from fedpact.server.control import Control
    from fedpact.server.home import ServerHome
    from fedpact.server.tables import transaction

    server = ServerHome(home)
    with transaction(server.open_database()) as session:
        node = institutions.revoke(session, name)
    if node is not None and server.serving() is not None:
        # If SuperLink is away it is told when it starts.
        with suppress(AddressError), Control.of(server) as control:
            control.unregister_node(node)
    console.print(f"{name} may not come in any more.")


@server_app.command("institutions")
def list_institutions(
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
) -> None:
    """List every institution that was invited, and whether its site is online."""
    from fedpact.common.cli import home_option
    from fedpact.server import institutions
    from fedpact.server.home import ServerHome
    from fedpact.server.tables import transaction

    server = ServerHome(home)
    online = _online(server)
    with transaction(server.open_database()) as session:
        rows = [
            {
                "name": row.name,
                "sector": row.sector,
                "role": row.role,
                "state": row.state,
                "online": row.state == "joined" and row.node_id in online,
                "invited_at": row.invited_at.isoformat(timespec="seconds"),
                "joined_at": row.joined_at and row.joined_at.isoformat(timespec="seconds"),
                "node_id": row.node_id,
            }
            for row in institutions.list_institutions(session)
        ]
    if format == "json":
        _print_json(rows)
        return
    if not rows:
        here = home_option(home, DEFAULT_HOME)
        typer.echo(f"Nobody was invited yet: `fedpact server invite NAME --sector …{here}`.")
        return
    shown = ("name", "sector", "role", "state", "online")
    table = Table(*shown, "joined")
    for row in rows:
        day = _cell(row["joined_at"])[:10]
        table.add_row(*(_cell(row[key]) for key in shown), day)
    console.print(table)


@server_app.command()
def statements(
    home: HomeOption = DEFAULT_HOME,
    format: Format = "table",  # noqa: A002
) -> None:
    """Show what studies have cost at each institution, as each has signed it."""
    from fedpact.common.spending import Spending, table
    from fedpact.server import statements as kept
    from fedpact.server.home import ServerHome
    from fedpact.server.tables import transaction

    with transaction(ServerHome(home).open_database()) as session:
        found = [
            Spending.read(row.text, row.key, row.signature) for row in kept.newest(session)
        ]
    if format == "json":
        _print_json([spending.model_dump(mode="json") for spending in found])
    else:
        console.print(table(found))


def _online(server: "ServerHome") -> set[str]:
    """Node ids that are connected; none while the coordinator is down."""
    from fedpact.common.errors import AddressError
    from fedpact.server.control import Control

    try:
        with Control.of(server) as control:
            return {str(node.node_id) for node in control.nodes() if node.status == "online"}
    except AddressError:
        return set()


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - to be read by programs


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
