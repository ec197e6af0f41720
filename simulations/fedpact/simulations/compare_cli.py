"""What `fedpact simulate` does where it is asked to compare."""

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from fedpact.common import study as studies
from fedpact.common.errors import RunError, UsageError
from fedpact.simulations import comparison, comparison_report
from fedpact.simulations.comparing import Comparison, compare
from fedpact.simulations.simulate import Simulation


def run_comparison(
    asked: Simulation,
    *,
    axes: Sequence[str],
    tune: Sequence[str],
    tune_seeds: int,
    seeds: int,
    jobs: int,
    as_json: bool,
) -> None:
    """Compare, and print what came of it.

    Args:
        asked: what stands on the command line beside the comparison; its seed is the first.
        axes: what to compare, as `fedpact.simulations.comparison` reads it.
        tune: what each variant tries first, spelt alike.
        tune_seeds: with how many seeds.
        seeds: how many.
        jobs: in how many processes.
        as_json: print the results as JSON.

    Raises:
        FedpactError: why it cannot run.
        RunError: a cell failed; the rest has been run and is reported.
    """
    if asked.grid != "process":
        raise UsageError(
            "A comparison runs on this machine's own processes.",
            advice="Leave --grid out; --jobs says how many run at a time.",
        )
    if asked.alone != "no" or asked.test is not None:
        raise UsageError(
            "A comparison is measured on the study's public test set and trains no site alone.",
            advice="Leave --alone and --test out, or simulate one variant with them.",
        )
    name = studies.load(asked.study).study.name
    folder = asked.folder or Path("fedpact-simulations") / f"{name}-compared"
    found = compare(
        Comparison(
            asked.study,
            variants=comparison.variants(axes),
            seeds=range(asked.seed, asked.seed + seeds),
            folder=folder,
            tune=comparison.grid(tune) if tune else (),
            tune_seeds=tune_seeds,
            data=asked.data,
            sites=asked.sites,
            partition=asked.partition,
            jobs=jobs,
        ),
        Console(stderr=True),
    )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(comparison_report.table(found), f"report: {folder / 'report.html'}")
    if found.failures:
        raise RunError(
            f"{len(found.failures)} of the comparison's simulations failed.",
            advice="The same command tries them again; the others are not run anew.",
        )
