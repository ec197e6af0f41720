"""How good the adapter becomes, row by row: what federating costs, what privacy costs, what methods do.

Each row is one comparison (`fedpact simulate --compare`) on public data, with its report and its
results in a folder that a later call goes on with. Several seeds set partition, sampling, noise and
the adapter's first values; the spread over them stands beside each figure.

    python benchmarks/accuracy.py --data FOLDER --row federated-dp --seeds 3

The data is a folder (`--data`, or `$FEDPACT_DATA`) that holds `sst2/`, `tweeteval-emotion/`,
`medquad-qtype/`, …: in each `train.csv.gz` and `test.csv.gz` (columns text, label and maybe site).
Without `--row` the rows are listed. `--records` and `--rounds` make a row smaller than it is meant.
"""

import csv
import gzip
import io
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from rich.console import Console

from _report import Value, parser, report
from fedpact.common import tabular
from fedpact.simulations import comparison, comparison_report
from fedpact.simulations.comparing import Comparison, compare
from fedpact.simulations.comparison import Variant
from fedpact.simulations.comparison_results import ComparisonResult

EPSILON, DELTA, BATCH = 8.0, 1e-5, 512
METHODS = ("ffa-lora", "fedavg", "fedsvd", "rolora", "flexlora")
RATES = "training.learning_rate=0.003,0.01,0.03"
NO_DP = {"privacy.mechanism": "none"}
BAD = 2


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        data: the data set's folder.
        variants: what is compared, given the training file and a folder for files of their own.
        figure: which variant's score less which other's is the row's figure.
        partition: how the training data are dealt out.
        sites: to how many; None takes the column's values.
        tune: what each variant tries first.
        target: what the figure should be.
        study: sections of the study beside those of all rows.
    """

    data: str
    variants: Callable[[Path, Path], Sequence[Variant]]
    figure: tuple[str, str]
    partition: str = "iid"
    sites: int | None = 3
    tune: str = ""
    target: str = ""
    study: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def central(name: str, sites: int, **changes: Any) -> Variant:
    """All records at one site, with the batches of all sites together."""
    return Variant(
        name, {"training.batch_size": BATCH * sites, **changes}, sites=1, partition="iid"
    )


def fixed(*variants: Variant) -> Callable[[Path, Path], Sequence[Variant]]:
    return lambda _training, _folder: variants


def alone_and_shared(training: Path, folder: Path) -> Sequence[Variant]:
    """All sites together, and each with its own records alone."""
    table = tabular.read(training)
    names = sorted(set(table.columns["site"]))
    alone = []
    for number, name in enumerate(names):
        mine = [i for i, site in enumerate(table.columns["site"]) if site == name]
        path = write(folder / f"alone-{number:02}.csv.gz", table.columns, mine)
        alone.append(Variant(f"{name} alone", NO_DP, data=path, sites=1, partition="iid"))
    return [Variant("shared", NO_DP), *alone]


def under_attack() -> Sequence[Variant]:
    rules: dict[str, dict[str, Any]] = {
        "mean": {},
        "median": {"aggregation.robust": "median"},
        "geometric-median": {"aggregation.robust": "geometric-median"},
        "multi-krum": {"aggregation.robust": "multi-krum"},
    }
    bad = {"aggregation.bad_sites": BAD, "federation.quorum": 10, **NO_DP}
    attacks = ("", "sign-flip", "noise", "label-flip", "little", "collusion")
    return [
        Variant(
            f"{rule}, {attack or 'all honest'}",
            {**bad, **changes},
            attack=f"{attack}:{BAD}" if attack else "",
        )
        for rule, changes in rules.items()
        for attack in attacks
    ]


ROWS = {
    "no-dp-federated-vs-central": Row(
        "sst2",
        fixed(Variant("federated", NO_DP), central("central", 3, **NO_DP)),
        ("federated", "central"),
    ),
    "central-dp": Row(
        "sst2",
        fixed(central("central, DP", 3), central("central, no DP", 3, **NO_DP)),
        ("central, DP", "central, no DP"),
    ),
    "federated-dp": Row(
        "sst2",
        fixed(
            Variant("federated, DP"),
            central("central, DP", 3),
            Variant("federated, no DP", NO_DP),
        ),
        ("federated, DP", "central, DP"),
    ),
    "methods-under-dp": Row(
        "sst2",
        fixed(*(Variant(method, {"aggregation.method": method}) for method in METHODS)),
        ("ffa-lora", "fedavg"),
        tune=RATES,
    ),
    "dirichlet-no-dp": Row(
        "tweeteval-emotion",
        fixed(
            *(Variant(method, {"aggregation.method": method, **NO_DP}) for method in METHODS),
            central("central", 10, **NO_DP),
        ),
        ("ffa-lora", "central"),
        partition="dirichlet:0.3",
        sites=10,
    ),
    "alone-vs-shared": Row(
        "medquad-qtype",
        alone_and_shared,
        ("shared", "best alone"),
        partition="column:site",
        sites=None,
        study={"training": {"batch_size": 64, "max_length": 128}},
    ),
    "bad-sites": Row(
        "sst2",
        lambda _training, _folder: under_attack(),
        ("median, sign-flip", "mean, sign-flip"),
        sites=10,
    ),
}


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--data", type=Path, default=os.environ.get("FEDPACT_DATA"))
    command_line.add_argument("--row", choices=ROWS)
    command_line.add_argument("--seeds", type=int, default=3)
    command_line.add_argument("--folder", type=Path, default=Path("fedpact-accuracy"))
    command_line.add_argument("--jobs", type=int, default=1)
    command_line.add_argument("--rounds", type=int, default=6)
    command_line.add_argument(
        "--records", type=int, help="of the training data; all by default"
    )
    args = command_line.parse_args()
    if args.row is None:
        print(f"accuracy: choose a --row: {', '.join(ROWS)}")
        return
    row = ROWS[args.row]
    if args.data is None or not (Path(args.data) / row.data / "train.csv.gz").is_file():
        print(f"accuracy: not run, there is no {row.data}/train.csv.gz in --data")
        return
    print_row(args.row, row, run(args.row, row, args), args)


def run(name: str, row: Row, args: Namespace) -> ComparisonResult:
    """Run a row, or what is left of it."""
    folder = args.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(args.data) / row.data
    training, test = (tabular.read(source / f"{part}.csv.gz") for part in ("train", "test"))
    kept = np.random.default_rng(0).permutation(training.records)[: args.records]
    train_file = write(folder / "train.csv.gz", training.columns, sorted(kept))
    write(folder / "test.csv.gz", test.columns, range(test.records))
    labels = sorted(set(training.columns["label"]))
    study = write_study(folder, row, labels, args.rounds)
    return compare(
        Comparison(
            study,
            variants=row.variants(train_file, folder),
            seeds=range(args.seeds),
            folder=folder / "compared",
            tune=comparison.grid([row.tune]) if row.tune else (),
            data=train_file,
            sites=row.sites,
            partition=row.partition,
            jobs=args.jobs,
        ),
        Console(stderr=True),
    )


def write_study(folder: Path, row: Row, labels: Sequence[str], rounds: int) -> Path:
    document: dict[str, Any] = {
        "study": {"name": folder.name},
        "task": {"labels": labels},
        "model": {"base": "sentence-transformers/all-MiniLM-L6-v2"},
        "training": {
            "rounds": rounds,
            "local_steps": 4,
            "batch_size": BATCH,
            "learning_rate": 1e-2,
            "max_length": 64,
        },
        "privacy": {"target_epsilon": EPSILON, "target_delta": DELTA},
        "evaluation": {"data": "test.csv.gz"},
    }
    for section, keys in row.study.items():
        document[section] = {**document.get(section, {}), **keys}
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


def write(path: Path, columns: Mapping[str, Sequence[Any]], kept: Sequence[int]) -> Path:
    """Some rows of a table as gzipped CSV, the same bytes each time."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([values[i] for values in columns.values()] for i in kept)
    path.write_bytes(gzip.compress(buffer.getvalue().encode(), mtime=0))
    return path


def print_row(name: str, row: Row, found: ComparisonResult, args: Namespace) -> None:
    means = {v.name: v.score.mean for v in found.variants if v.score is not None}
    if row.figure[1] == "best alone":
        means["best alone"] = max(v for k, v in means.items() if k.endswith(" alone"))
    parts: dict[str, Value] = {}
    for variant in found.variants:
        if variant.score is not None:
            sd = "" if variant.score.sd is None else f" ± {variant.score.sd:.4f}"
            private = "no DP" if variant.epsilon is None else f"ε {variant.epsilon:.3f}"
            parts[variant.name] = (
                f"{variant.score.mean:.4f}{sd} (n = {variant.score.n}), {private}, "
                f"{variant.bytes_out_per_site:,.0f} bytes sent, {variant.seconds:.0f} s"
            )
    parts |= {f"failed: {f.variant}, seed {f.seed}": f.reason for f in found.failures}
    parts |= {"delta": DELTA, "unit": f"{found.variants[0].neighbours} record"}
    parts |= {"rounds": args.rounds, "training_records": args.records or "all"}
    if args.format == "table":
        Console().print(comparison_report.table(found))
    one, other = row.figure
    report(
        title=f"{name}: points of {found.metric} of {one} less {other}, on {row.data}",
        figure=100 * (means.get(one, float("nan")) - means.get(other, float("nan"))),
        parts=parts,
        target=row.target,
        form=args.format,
    )


if __name__ == "__main__":
    main()
