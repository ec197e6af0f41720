"""`fedpact client dataset …` and `fedpact client ledger`: what may be used, and what it cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from fedpact.client.datasets import Dataset
    from fedpact.client.home import ClientHome
    from fedpact.common.study import Study

dataset_app = typer.Typer(no_args_is_help=True, help="The institution's data sets.")
# What names say is shown as it is, never taken for Rich's markup.
console = Console(markup=False, highlight=False)
notices = Console(markup=False, highlight=False, stderr=True)

DEFAULT_HOME = Path("~/.fedpact/client")

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="FEDPACT_CLIENT_HOME", help="The site's folder.")
]
Format = Annotated[
    Literal["table", "json"], typer.Option("--format", help="How the table is printed.")
]
NameArgument = Annotated[str, typer.Argument(help="The data set's name.")]


@dataset_app.command()
def add(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(help="A CSV, JSON lines or Parquet file.")],
    population: Annotated[
        str | None,
        typer.Option(
            help="Whom the records are sampled from, in your words: data sets of one population "
            "share one budget. By default what it was before, or the data set's name."
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Register a file as a data set, or take its new content; what was spent stays spent."""
    from fedpact.client.datasets import Datasets
    from fedpact.client.record_cache import forget_all_but

    site = _home(home)
    datasets = Datasets(site.open_database())
    with notices.status(f"Reading {file}"):
        dataset, warnings = datasets.add(name, file, population)
    for warning in warnings:
        notices.print(f"Note: {warning}")
    forget_all_but(site, datasets.list())
    console.print(
        f"{dataset.name} has {dataset.records} records; content {dataset.sha256[:12]}; "
        f"population {dataset.population}."
    )


@dataset_app.command("list")
def list_datasets(home: HomeOption = DEFAULT_HOME, format_: Format = "table") -> None:
    """List the data sets, and whether their files are still what was registered."""
    from fedpact.client.datasets import Datasets

    with notices.status("Reading the files"):
        rows = [
            {
                "name": dataset.name,
                "population": dataset.population,
                "records": dataset.records,
                "format": dataset.format,
                "state": _state(dataset),
                "sha256": dataset.sha256,
                "path": str(dataset.path),
                "added_at": dataset.added_at.isoformat(timespec="seconds"),
            }
            for dataset in Datasets(_home(home).open_database()).list()
        ]
    if format_ == "json":
        _print_json(rows)
        return
    table = Table(
        "name",
        "population",
        "records",
        "format",
        "state",
        Column("content", overflow="fold"),
        Column("path", overflow="fold"),
    )
    for row in rows:
        cells = (row["name"], row["population"], row["records"], row["format"], row["state"])
        table.add_row(*map(str, cells), str(row["sha256"])[:12], str(row["path"]))
    console.print(table)


@dataset_app.command()
def check(
    name: NameArgument,
    study: Annotated[
        Path | None, typer.Option(help="A study file that the data set must fit.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Check that a data set is whole and unchanged, and that it fits a study."""
    from fedpact.client.datasets import Datasets, require_unchanged
    from fedpact.common import study as studies

    site = _home(home)
    dataset = Datasets(site.open_database()).get(name)
    with notices.status(f"Reading {dataset.path}"):
        require_unchanged(dataset)
        if study is not None:
            _check_fit(site, dataset, studies.load(study))
    console.print(f"{name} is unchanged{' and fits the study' if study else ''}.")


def ledger(
    name: Annotated[
        str | None, typer.Argument(help="The data set's name; all by default.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    format_: Format = "table",
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw ε over time, too (not with JSON).")
    ] = False,
) -> None:
    """Show what privacy each data set has spent, run by run, and what is left."""
    from fedpact.client import ledger_plot, policy, statement
    from fedpact.client.datasets import Datasets
    from fedpact.client.ledger import Ledger

    site = _home(home)
    engine = site.open_database()
    rules, datasets = policy.load(site.policy), Datasets(engine)
    chosen = datasets.list() if name is None else [datasets.get(name)]
    books = Ledger(engine)
    with notices.status("Composing what was spent"):
        entries = [statement.statement(books, dataset, rules) for dataset in chosen]
    if format_ == "json":
        _print_json(statement.as_json(entries))
        return
    table = Table(
        "data set",
        "study",
        Column("run", overflow="fold"),
        "rounds",
        "ε spent",
        "at δ",
        "for one",
        "ε remaining",
    )
    for entry in entries:
        for line in entry.runs:
            rounds = f"{line.rounds}" + (f" ({line.unsettled} open)" if line.unsettled else "")
            spent = (f"{line.epsilon:.4g}", f"{line.delta:.3g}", entry.unit, "")
            table.add_row(entry.dataset, line.study, line.run, rounds, *spent)
        table.add_row(
            _with_population(entry.dataset, entry.population),
            "all together",
            "",
            str(sum(line.rounds for line in entry.runs)),
            f"{entry.epsilon:.4g}",
            f"{entry.delta:.3g}",
            entry.unit,
            f"{entry.remaining:.4g} of {entry.cap:.4g}",
            style="bold",
            end_section=True,
        )
    console.print(table)
    units = " or ".join(sorted({entry.unit for entry in entries})) or "record"
    console.print(
        f"ε protects one {units}: neighbouring data sets add or remove one. Rounds that are "
        "open count in full."
    )
    for entry in entries if plot else ():
        with notices.status(f"Composing what {entry.dataset} had spent over time"):
            points = ledger_plot.course(books.history(entry.dataset), entry.delta)
        console.print()
        console.print(ledger_plot.picture(entry, points))


def _with_population(dataset: str, population: str) -> str:
    return dataset if dataset == population else f"{dataset} ({population})"


def _home(folder: Path) -> "ClientHome":
    from fedpact.client.home import ClientHome

    return ClientHome.at(folder)


def _state(dataset: "Dataset") -> str:
    from fedpact.common.errors import DataError
    from fedpact.common.tabular import content_digest

    try:
        return "unchanged" if content_digest(dataset.path) == dataset.sha256 else "changed"
    except DataError:
        return "unreadable"


def _check_fit(site: "ClientHome", dataset: "Dataset", study: "Study") -> None:
    """Columns and labels always; what the policy says once this site has joined."""
    from fedpact.client import policy, policy_check
    from fedpact.client.datasets import load_rows
    from fedpact.client.join import load_site
    from fedpact.common import tasks

    load_rows(dataset, tasks.for_study(study))
    if site.site.exists():
        institution = load_site(site).institution
        rules = policy.load(site.policy)
        policy_check.check(rules, study, institution, dataset.records)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - to be read by programs
