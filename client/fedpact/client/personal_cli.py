"""`fedpact client report` and `personal export`: what a run gave this institution."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedpact.client.dataset_cli import DEFAULT_HOME, Format, HomeOption, console, notices

if TYPE_CHECKING:
    from fedpact.client.personal import Kept
    from fedpact.client.worth import Bench
    from fedpact.common.adapter import Weights
    from fedpact.common.records import EncodedRecords
    from fedpact.common.study import Study

personal_app = typer.Typer(
    no_args_is_help=True, help="What is this institution's own of a run."
)

RunArgument = Annotated[str, typer.Argument(help="Which run, as `departures` lists it.")]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        help="The run's adapter, a folder; by default the one that was received for the newest "
        "round that this site answered."
    ),
]
MethodOption = Annotated[
    Literal["fine-tune", "interpolate"] | None,
    typer.Option(
        help="How the personal adapter is trained, where the study trains one after the run; by "
        "default the study's way. What stays here is your own affair."
    ),
]


def report(
    run: RunArgument,
    test: Annotated[
        Path | None,
        typer.Option(
            help="A file of your own records that nobody trained on; by default what the study "
            "sets aside."
        ),
    ] = None,
    public: Annotated[Path | None, typer.Option(help="The study's public test set.")] = None,
    adapter: AdapterOption = None,
    method: MethodOption = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="The adapter that the study begins with, a folder, if it names one: alone begins "
            "with it too."
        ),
    ] = None,
    dp: Annotated[
        bool, typer.Option("--dp", help="Train alone with the study's noise too.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this PNG file.")] = None,
    home: HomeOption = DEFAULT_HOME,
    format_: Format = "table",
) -> None:
    """Was it worth joining? Compares what a run gave with training alone; nothing leaves."""
    from fedpact.client.worth import read_records
    from fedpact.common.base_models import require_digest
    from fedpact.common.figures import draw_worth
    from fedpact.common.worth import Worth, table

    study, kept, bench, aside = _bench(home, run, method)
    if public is not None:
        require_digest(public, study.evaluation.sha256, f"The public test set {public}")
    if start is not None:
        bench = _beginning_with(bench, start)
    with notices.status("Training alone, and measuring"):
        own = aside if test is None else read_records(test, bench.study, bench.workbench)
        known = None if public is None else read_records(public, bench.study, bench.workbench)
        found = bench.worth(_shared(adapter, kept), kept, own, known, private=dp)
    worth = Worth.of(study, run, [found], private=dp)
    worth = worth.model_copy(update={"personalisation": bench.study.personalisation.method})
    if plot is not None:
        draw_worth(worth, plot)
    if format_ == "json":
        print(worth.model_dump_json(indent=2))  # noqa: T201 - to be read by programs
    else:
        console.print(table(worth))
        console.print("Measured on private data, without noise: keep it.")
        if study.adapter.start is not None and start is None:
            console.print(
                "Alone began at zero, the study did not: give its adapter with --start."
            )


@personal_app.command()
def export(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(help="Where to; made if missing.")],
    adapter: AdapterOption = None,
    method: MethodOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write this institution's personal adapter of a run as PEFT reads it."""
    from fedpact.common import model as models
    from fedpact.common.database import disk_errors
    from fedpact.common.errors import RunError, UsageError

    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", advice="Name another folder.")
    _, kept, bench, _ = _bench(home, run, method)
    with notices.status("Making the adapter"):
        made = bench.personal(_shared(adapter, kept), kept)
    if made is None:
        raise RunError(
            f"The run {run} has no personal adapter here.",
            advice="Its study's [personalisation] makes none, or none could be trained; the "
            "site's log says which.",
        )
    with disk_errors():
        models.save_peft(folder, made.weights, bench.study)
    console.print(f"The personal adapter is in {folder}.")
    if made.share_of_shared is not None:
        console.print(
            f"The share of it that began with the shared adapter: {made.share_of_shared:g}."
        )
    if not bench.study.is_private or not bench.study.personalisation.keeps_tensors:
        console.print("It was trained WITHOUT NOISE: it can give away records. Keep it inside.")


def _bench(
    folder: Path, run: str, method: str | None
) -> "tuple[Study, Kept, Bench, EncodedRecords]":
    """A run's study, what is kept of it, where it is measured, and the records set aside."""
    from fedpact.client.datasets import Datasets, find_dataset
    from fedpact.client.home import ClientHome
    from fedpact.client.join import read_settings
    from fedpact.client.personal import RunFolder
    from fedpact.client.record_cache import encode
    from fedpact.client.validation import split
    from fedpact.client.workbench import Workbench
    from fedpact.client.worth import Bench

    home, workbench = ClientHome.at(folder), Workbench()
    study, kept = RunFolder(home.runs).newest(run)
    looked_at = study if method is None else study.personalised_by(method)
    with notices.status("Reading the records"):
        dataset = find_dataset(Datasets(home.open_database()), study)
        tokenizer = workbench.model(looked_at).tokenizer
        records = split(study, encode(home, dataset, study, tokenizer))
    name = read_settings(home).institution
    bench = Bench(looked_at, name, workbench, records.training)
    return study, kept, bench, records.validation


def _beginning_with(bench: "Bench", start: Path) -> "Bench":
    from fedpact.common import model as models
    from fedpact.common.errors import UsageError

    if bench.study.adapter.start is None:
        raise UsageError("The study begins with no adapter.", advice="Leave --start out.")
    model = bench.workbench.model(bench.study).module
    return replace(bench, start=models.first_weights(bench.study, start, model))


def _shared(folder: Path | None, kept: "Kept") -> "Weights":
    from fedpact.common import model as models

    return kept.shared if folder is None else models.load_peft(folder)
