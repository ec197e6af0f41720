"""A comparison for people: a table in the terminal, a picture, and a page with both.

The page is one file that loads nothing: the picture is in it, the table is plain HTML.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from rich.console import Group
from rich.table import Table

from fedpact.common import figures
from fedpact.common.database import disk_errors
from fedpact.simulations import comparison
from fedpact.simulations.cells import CellResult
from fedpact.simulations.comparison_results import (
    ComparisonResult,
    Spread,
    VariantResult,
    write_rounds,
)

# Told apart by people who see colours otherwise (Okabe and Ito 2008), and by their dashes.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES: Final = ("-", "--", "-.", ":")
_STYLE: Final = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { border-bottom: 1px solid #767676; padding: .3rem .7rem; text-align: right; }
th[scope=row], th:first-child { text-align: left; }
"""


def write(found: ComparisonResult, cells: Sequence[CellResult], folder: Path) -> None:
    """Write `summary.json`, `rounds.parquet`, `report.png` and `report.html`.

    Raises:
        StorageError: they cannot be written.
    """
    picture = draw(found, cells)
    write_rounds(cells, folder / "rounds.parquet")
    with disk_errors():
        (folder / "report.png").write_bytes(picture)
        (folder / "report.html").write_text(page(found, picture), encoding="utf-8")
        (folder / "summary.json").write_text(
            found.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )


def draw(found: ComparisonResult, cells: Sequence[CellResult]) -> bytes:
    """The curves as a PNG: each variant's mean over seeds, and a standard deviation around it.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figure = figures.new_figure(8.0, 4.5)
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    for number, variant in enumerate(found.variants):
        rounds, means, sds = _curve(cells, variant.name)
        colour, dash = (c[number % len(c)] for c in (_COLOURS, _DASHES))
        axes.plot(rounds, means, dash, color=colour, label=variant.name, marker=".")
        low, high = ([m + s * sd for m, sd in zip(means, sds, strict=True)] for s in (-1, 1))
        axes.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("round")
    axes.set_ylabel(f"{found.metric} on {found.setting.test_set}")
    axes.set_title(found.study)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=144, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _curve(
    cells: Sequence[CellResult], variant: str
) -> tuple[list[int], list[float], list[float]]:
    """Rounds, and the mean and standard deviation of the seeds that measured each."""
    scores = defaultdict[int, list[float]](list)
    for cell in cells:
        for r in cell.rounds if cell.variant == variant else ():
            if r.score is not None:
                scores[r.round].append(r.score)
    rounds = sorted(scores)
    spreads = [stdev(scores[r]) if len(scores[r]) > 1 else 0.0 for r in rounds]
    return rounds, [fmean(scores[r]) for r in rounds], spreads


def table(found: ComparisonResult) -> Group:
    """The comparison for terminals."""
    title = f"{found.study}: {found.metric} on {found.setting.test_set}"
    return Group(
        _table(title, _scores(found)),
        _table("What a run cost", _costs(found)),
        *_remarks(found),
    )


def _table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    shown = Table(title=title)
    for number, head in enumerate(rows[0]):
        shown.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def page(found: ComparisonResult, picture: bytes) -> str:
    """The comparison as one HTML file."""
    both = zip(_scores(found), _costs(found), strict=True)
    heads, *rows = ([escape(cell) for cell in (*one, *other[1:])] for one, other in both)
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    remarks = "\n".join(f"<p>{escape(line)}</p>" for line in _remarks(found))
    title = escape(f"{found.study}: {found.metric} on {found.setting.test_set}")
    alt = escape(
        f"{found.metric} by round, one line for each of: "
        + "; ".join(variant.name for variant in found.variants)
        + ". The last values are in the table below."
    )
    image = base64.b64encode(picture).decode()
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<figure>
<img alt="{alt}" src="data:image/png;base64,{image}">
<figcaption>Mean over seeds, and one standard deviation around it.</figcaption>
</figure>
<div class="wide">
<table>
<caption>After the last round</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
{remarks}
</main>
</body>
</html>
"""


def _scores(found: ComparisonResult) -> list[list[str]]:
    """How well the variants do, heads first; one row for each."""
    first = found.variants[0]
    rows = [["variant", found.metric, "seeds", "worst", "best", f"less {first.name}"]]
    for variant in found.variants:
        scores = variant.scores.values()
        rows.append(
            [
                variant.name,
                _spread(variant.score),
                str(len(scores)),
                *([f"{f(scores):.4f}" for f in (min, max)] if scores else ["", ""]),
                "–" if variant is first else _spread(variant.gap, sign="+"),
            ]
        )
    return rows


def _costs(found: ComparisonResult) -> list[list[str]]:
    """What the variants cost, heads first."""
    tuned = any(variant.tuning for variant in found.variants)
    heads = ["variant", "bytes to a site", "from a site", "seconds", "ε", "δ"]
    return [
        heads + ["chosen"] * tuned,
        *(
            [
                variant.name,
                f"{variant.bytes_in_per_site:,.0f}",
                f"{variant.bytes_out_per_site:,.0f}",
                f"{variant.seconds:.1f}",
                _epsilon(variant),
                "" if variant.epsilon is None else f"{variant.delta:g}",
                *[_chosen(variant)] * tuned,
            ]
            for variant in found.variants
        ),
    ]


def _spread(spread: Spread | None, sign: str = "") -> str:
    if spread is None:
        return ""
    around = "" if spread.sd is None else f" ± {spread.sd:.4f}"
    return f"{spread.mean:{sign}.4f}{around}"


def _epsilon(variant: VariantResult) -> str:
    if not variant.scores:
        return ""
    return "NOT PRIVATE" if variant.epsilon is None else f"{variant.epsilon:.3f}"


def _chosen(variant: VariantResult) -> str:
    chosen = variant.tuning.chosen if variant.tuning else None
    return comparison.name_of(chosen or {})


def _remarks(found: ComparisonResult) -> list[str]:
    """What must be known to read the table."""
    setting, first = found.setting, found.variants[0]
    sites = sorted({variant.sites for variant in found.variants if variant.sites})
    lines = [
        (
            f"{setting.data} dealt out as {setting.partition} to "
            f"{' or '.join(map(str, sites))} sites; seeds {', '.join(map(str, setting.seeds))} set "
            "partition, sampling, noise and the adapter's first values. ± is one standard deviation "
            f"over seeds; the gap to {first.name} is taken seed by seed."
        ),
        "Bytes are of a whole run, for each site; seconds are a simulation's, start to end.",
    ]
    units = sorted({variant.unit for variant in found.variants if variant.epsilon is not None})
    deltas = sorted({variant.delta for variant in found.variants})
    if units:
        lines.append(
            f"ε at δ = {' or '.join(f'{delta:g}' for delta in deltas)}, for adding or removing "
            f"one {' or '.join(units)}: the largest of all sites. A simulation's noise follows "
            "its seed, so this is what a federation would spend; the simulation itself is not "
            "private, and neither is having run several."
        )
    for variant in found.variants:
        if variant.tuning is not None:
            lines.append(_tuning_remark(variant))
        if variant.central is not None and variant.central.epsilon is not None:
            lines.append(
                f"{variant.name}: ε = {variant.central.epsilon:.3f} at δ = "
                f"{variant.central.delta:g} for adding or removing one institution, by the "
                f"coordinator's noise: against {variant.central.against}."
            )
        if variant.missing_updates:
            lines.append(f"{variant.name}: {variant.missing_updates} updates did not count.")
    lines += [f"Failed: {f.variant}, seed {f.seed}: {f.reason}" for f in found.failures]
    return lines


def _tuning_remark(variant: VariantResult) -> str:
    tuning = variant.tuning
    assert tuning is not None  # noqa: S101 - the caller has looked
    tried = "; ".join(
        f"{comparison.name_of(one.values)}: "
        + ("failed" if one.score is None else f"{one.score:.4f}")
        for one in tuning.tries
    )
    seeds = ", ".join(map(str, tuning.seeds))
    return (
        f"{variant.name} was tuned with seeds {seeds} on {tuning.held_out:.0%} of the "
        f"training data, held out ({tried}), and then run on all of it. The test set chose "
        "nothing. No ε above pays for the tuning: each try looks at the records once more "
        "(Papernot and Steinke 2022 say what that costs)."
    )
