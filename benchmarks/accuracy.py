"""How good the adapter becomes, row by row: what federating costs, what privacy costs, what methods do.

Each row is measured on public data with several seeds, which set partition, sampling, noise and the
adapter's first values; the spread over them stands beside each figure. What has been run is in a
folder, with which a later call goes on.

    python benchmarks/accuracy.py --data FOLDER --row federated-dp --seeds 3

The data is a folder (`--data`, or `$FEDPACT_DATA`) that holds `sst2/`, `tweeteval-emotion/`,
`medquad-qtype/`, …: in each `train.csv.gz` and `test.csv.gz` (columns text, label and maybe site) or
`.jsonl.gz`. Without `--row` the rows are listed; what they are stands in `_rows.py`. `--records` and
`--rounds` make a row smaller than it is meant; `--only` runs some of its variants.
"""

import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

import _sites
from _figures import Figure, Scores, ranked
from _report import Value, parser, report
from _rows import ROWS, Row
from _site_figures import ALONE, Had, SiteScores
from _start import train_start
from _study import DELTA, Files, prepare
from fedpact.common import study_check
from fedpact.simulations import comparison, comparison_report
from fedpact.simulations.cells import Cell
from fedpact.simulations.comparing import Comparison, compare
from fedpact.simulations.comparison import Variant
from fedpact.simulations.comparison_results import NEIGHBOURS, ComparisonResult, Spread


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--data", type=Path, default=os.environ.get("FEDPACT_DATA"))
    command_line.add_argument("--row", choices=ROWS)
    command_line.add_argument("--seeds", type=int, default=3)
    command_line.add_argument("--folder", type=Path, default=Path("fedpact-accuracy"))
    command_line.add_argument("--jobs", type=int, default=1)
    command_line.add_argument("--only", help="variants' names, such as '*sign-flip'")
    command_line.add_argument("--rounds", type=int, help="in the place of the recipe's")
    command_line.add_argument(
        "--records", type=int, help="of the training data and of the test set; all by default"
    )
    args = command_line.parse_args()
    # That noise follows a seed, at each site in each round, is said in the report.
    logging.getLogger("fedpact").setLevel(logging.ERROR)
    if args.row is None:
        print(f"accuracy: choose a --row: {', '.join(ROWS)}")
        return
    row = ROWS[args.row]
    name = f"{row.data.folder}/train{row.data.suffix}"
    if args.data is None or not (Path(args.data) / name).is_file():
        print(f"accuracy: not run, there is no {name} in --data")
        return
    variants = [v for v in row.variants if fnmatch(v.name, args.only or "*")]
    if not variants:
        print(f"accuracy: --only is none of {', '.join(v.name for v in row.variants)}")
        return
    folder = args.folder / args.row
    train_start(row, Path(args.data), folder)
    files = prepare(row, Path(args.data) / row.data.folder, folder, args.records, args.rounds)
    variants = [files.with_batch(variant) for variant in variants]
    measure = measure_sites if row.site_rules else measure_variants
    figures, parts = measure(row, variants, files, args)
    print_row(row, figures, parts, args)


Found = tuple[Sequence[Figure], dict[str, Value]]


def measure_variants(
    row: Row, variants: Sequence[Variant], files: Files, args: Namespace
) -> Found:
    """A comparison of whole federations, by the score on the test set."""
    rates = [{"training.learning_rate": rate} for rate in row.recipe.rates]
    found = compare(
        Comparison(
            files.study,
            variants=variants,
            seeds=range(args.seeds),
            folder=files.study.parent / "compared",
            tune=rates if row.tune else (),
            tune_seeds=row.tune,
            data=files.training,
            sites=row.sites,
            partition=row.partition,
            jobs=args.jobs,
            measure=row.data.measure,
        ),
        Console(stderr=True),
    )
    if args.format == "table":
        Console().print(comparison_report.table(found))
    scores = {variant.name: variant.scores for variant in found.variants}
    figures = [figure for rule in row.rules for figure in rule(scores)]
    return figures, {
        "measure": found.metric,
        **variant_parts(found),
        "ranking": ranking(scores),
    }


def ranking(scores: Scores) -> str:
    return " > ".join(ranked(scores))


def variant_parts(found: ComparisonResult) -> dict[str, Value]:
    parts: dict[str, Value] = {}
    for variant in found.variants:
        if variant.score is None:
            continue
        chosen = (variant.tuning and variant.tuning.chosen) or {}
        parts[variant.name] = ", ".join(
            [
                spread_text(variant.score),
                epsilon_text(variant.epsilon),
                f"{variant.bytes_out_per_site:,.0f} bytes sent",
                f"{variant.seconds:.0f} s",
                *(f"{key.split('.')[-1]} {value:g}" for key, value in chosen.items()),
            ]
        )
    return parts | {f"failed: {f.variant}, seed {f.seed}": f.reason for f in found.failures}


def measure_sites(
    row: Row, variants: Sequence[Variant], files: Files, args: Namespace
) -> Found:
    """Every site of the row's federations: alone, shared and personal."""
    document, _ = study_check.read(files.study)
    cells = [
        Cell(
            variant=variant.name,
            study=comparison.changed(document, {**variant.changes, "training.seed": seed}),
            folder_of_study=files.study.parent.absolute(),
            data=files.training.absolute(),
            partition=row.partition,
            sites=row.sites,
            seed=seed,
        )
        for seed in range(args.seeds)
        for variant in variants
    ]
    alone_folder = args.folder / ALONE / row.data.folder
    parts = _sites.plan(cells, files.study.parent / "parts", alone_folder)
    results, failures = _sites.run(parts, args.jobs, Console(stderr=True))
    scores = _sites.scores_of(parts, results)
    figures = [figure for rule in row.site_rules for figure in rule(scores)]
    shown = site_parts(scores) | cost_parts(parts, results)
    return figures, shown | {f"failed {i}": why for i, why in enumerate(failures, 1)}


def site_parts(scores: SiteScores) -> dict[str, Value]:
    """Own and whole test score of each site, each way; means over seeds."""
    parts: dict[str, Value] = {}
    for site in sorted({site for had in scores.values() for site, _ in had}):
        ways = {
            way: [one for (name, _), one in had.items() if name == site]
            for way, had in scores.items()
        }
        parts[site] = "; ".join(f"{way} {had_text(had)}" for way, had in ways.items() if had)
    return parts


def had_text(had: Sequence[Had]) -> str:
    both = {"own": [one.own for one in had], "whole": [one.whole for one in had]}
    there = {name: [v for v in values if v is not None] for name, values in both.items()}
    return ", ".join(f"{spread_text(Spread.of(v))} {name}" for name, v in there.items() if v)


def cost_parts(
    parts: Sequence[_sites.Part], results: Sequence[_sites.Result | None]
) -> dict[str, Value]:
    """ε, bytes and seconds of each variant's federations; mean over seeds, ε the largest."""
    by_variant: dict[str, list[_sites.Result]] = {}
    for part, result in zip(parts, results, strict=True):
        if result is not None:
            name = part.cell.variant if part.site is None else "a site alone"
            by_variant.setdefault(name, []).append(result)
    costs: dict[str, Value] = {}
    for name, ended in by_variant.items():
        epsilon = max((r.epsilon for r in ended if r.epsilon is not None), default=None)
        sent = sum(r.bytes_out for r in ended) / len(ended)
        seconds = sum(r.seconds for r in ended) / len(ended)
        apart = "nothing sent" if name == "a site alone" else f"{sent:,.0f} bytes sent"
        costs[f"cost of {name}"] = f"{epsilon_text(epsilon)}, {apart}, {seconds:.0f} s"
    return costs


def spread_text(spread: Spread) -> str:
    sd = "" if spread.sd is None else f" ± {spread.sd:.4f}"
    return f"{spread.mean:.4f}{sd} (n = {spread.n})"


def epsilon_text(epsilon: float | None) -> str:
    return "no DP" if epsilon is None else f"ε {epsilon:.3f}"


def print_row(
    row: Row, figures: Sequence[Figure], parts: Mapping[str, Value], args: Namespace
) -> None:
    shown: dict[str, Value] = dict(parts)
    if row.epsilon is not None:
        shown |= {"delta": DELTA, "unit": f"{NEIGHBOURS} record"}
    shown |= {
        "seeds": args.seeds,
        "rounds": args.rounds or row.recipe.rounds,
        "records": args.records or "all",
        **{figure.what: str(figure) for figure in figures},
    }
    first = figures[0] if figures else Figure("nothing to compare yet", float("nan"))
    report(
        title=f"{args.row}: {first.what}, on {row.data.folder}",
        figure=first.value,
        parts=shown,
        target=first.verdict.removeprefix("target "),
        form=args.format,
    )


if __name__ == "__main__":
    main()
