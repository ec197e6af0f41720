"""`fedpact study plan`: what a study will cost, before anybody spends anything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedpact.common.cli import StudyFile

if TYPE_CHECKING:
    from rich.console import Console


def plan(
    study: StudyFile,
    data: Annotated[
        Path | None,
        typer.Option(help="Simulate it too, on this file: what accuracy to expect."),
    ] = None,
    person_records: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=1000,
            help="Where the study promises to records: what that is to a person with so many. May be "
            "given again; 2, 4 and 8 by default.",
        ),
    ] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="How to print.")] = "table",  # noqa: A002
) -> None:
    """Say what a study will cost each site: noise, ε, and what ε means for a person."""
    from rich.console import Console
    from rich.progress import track

    from fedpact.common import study as studies
    from fedpact.common.errors import BudgetError
    from fedpact.simulations import planning

    loaded, quiet = studies.load(study), Console(stderr=True)
    steps = track(
        planning.plan(loaded, person_records or planning.PERSON_RECORDS),
        total=len(loaded.institutions),
        description="Planning",
        console=quiet,
        transient=True,
    )
    sites = list(steps)
    unaffordable = [site for site in sites if site.why]
    accuracy = _accuracy(study, data, quiet) if data is not None and not unaffordable else None
    found = planning.of(loaded, sites, accuracy)
    if format == "json":
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(planning.tables(found))
    if unaffordable:
        names = ", ".join(site.name for site in unaffordable)
        raise BudgetError(
            f"The budget cannot buy this plan at {names}.",
            advice="Take fewer rounds, a smaller batch or a larger target_epsilon.",
        )


def _accuracy(study: Path, data: Path, console: "Console") -> float | None:
    """The accuracy at the end of a simulation among as many sites, dealt evenly."""
    import tempfile

    from fedpact.common.errors import StudyError
    from fedpact.simulations.simulate import Simulation, simulate

    with tempfile.TemporaryDirectory() as scratch:
        asked = Simulation(study, data=data, folder=Path(scratch) / "run")
        result, _ = simulate(asked, console)
    accuracy = result.rounds[-1].accuracy if result.rounds else None
    if accuracy is None:
        raise StudyError(
            "The study has no public test set to measure a simulation on.",
            advice="Name one in [evaluation] data.",
        )
    return accuracy
