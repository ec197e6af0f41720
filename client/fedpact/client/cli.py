"""`fedpact client`: an institution's daemon."""

from typing import Annotated

import typer

from fedpact.client import study_cli
from fedpact.client.audit_cli import audit
from fedpact.client.dataset_cli import DEFAULT_HOME, HomeOption, dataset_app, ledger
from fedpact.client.personal_cli import personal_app, report
from fedpact.client.policy_cli import policy_app
from fedpact.client.watch_cli import departures, doctor, release, status, withhold
from fedpact.common.cli import MetricsPort

client_app = typer.Typer(no_args_is_help=True, help="An institution's daemon.")
client_app.add_typer(dataset_app, name="dataset")
client_app.add_typer(policy_app, name="policy")
client_app.add_typer(personal_app, name="personal")
client_app.command("ledger")(ledger)
client_app.command("audit")(audit)
client_app.command("report")(report)
for verb in (status, departures, release, withhold, doctor):
    client_app.command(verb.__name__)(verb)
study_cli.add_to(client_app)


@client_app.command()
def join(
    token: Annotated[str, typer.Argument(help="What the coordinator's invite printed.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Join a federation with one token: makes keys here, trusts the coordinator's CA."""
    from fedpact.client import policy
    from fedpact.client.home import ClientHome
    from fedpact.client.join import join as join_federation
    from fedpact.common.cli import home_option
    from fedpact.common.identity import Role
    from fedpact.common.private_files import write_private

    site = ClientHome.at(home)
    joined = join_federation(token, site)
    if joined.role is not Role.DATA_HOLDER:
        typer.echo(f"{joined.institution} has joined {joined.service} as {joined.role}.")
        return
    if not site.policy.exists():
        write_private(site.policy, policy.template().encode())
    here = home_option(home, DEFAULT_HOME)
    typer.echo(
        f"{joined.institution} has joined {joined.coordinator}.\n"
        f"Your rules are in {site.policy}: read them.\n"
        f"Next: `fedpact client dataset add NAME FILE{here}`, then `fedpact client up{here}`."
    )


@client_app.command()
def rotate(home: HomeOption = DEFAULT_HOME) -> None:
    """Change your keys: new ones are made here, the old ones are refused from then on."""
    from fedpact.client.home import ClientHome
    from fedpact.client.rotate import rotate as change_keys

    site = change_keys(ClientHome.at(home))
    typer.echo(
        f"{site.institution} has new keys. A daemon that is up takes them by itself; "
        "what you signed before stays signed with the old key."
    )


@client_app.command()
def up(
    home: HomeOption = DEFAULT_HOME,
    metrics_port: MetricsPort = None,
) -> None:
    """Serve: answer the coordinator's requests, within your policy, until stopped."""
    import os

    from fedpact.client.home import ClientHome
    from fedpact.common import logs

    # A base model comes from this machine; what it asks the hub for beside that is noise.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logs.configure()
    from fedpact.client.up import up as serve

    serve(ClientHome.at(home), metrics_port=metrics_port)
