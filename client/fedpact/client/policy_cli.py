"""`fedpact client policy …`: whether the site's rules are valid, and what they mean."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedpact.client.dataset_cli import DEFAULT_HOME, Format, HomeOption, console

if TYPE_CHECKING:
    from fedpact.client.policy import Policy

policy_app = typer.Typer(no_args_is_help=True, help="The institution's own rules.")


@policy_app.command()
def check(home: HomeOption = DEFAULT_HOME) -> None:
    """Check that the policy file is valid, and say what it means."""
    from fedpact.client import policy_check

    for sentence in policy_check.in_words(_rules(home)):
        console.print(f"- {sentence}")


@policy_app.command()
def show(home: HomeOption = DEFAULT_HOME, format_: Format = "table") -> None:
    """Show every rule that holds, those that the file leaves out at their defaults."""
    import json

    from rich.table import Table

    rules = _rules(home).model_dump(mode="json")
    if format_ == "json":
        typer.echo(json.dumps(rules, indent=2, ensure_ascii=False))
        return
    table = Table("rule", "value")
    for name, value in rules.items():
        table.add_row(name, "none" if value is None else json.dumps(value, ensure_ascii=False))
    console.print(table)


def _rules(home: Path) -> "Policy":
    from fedpact.client import policy
    from fedpact.client.home import ClientHome

    return policy.load(ClientHome.at(home).policy)
