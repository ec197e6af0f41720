"""Figures as PNG files, by matplotlib, which is loaded only when one is drawn."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpact.common.database import disk_errors
from fedpact.common.errors import UsageError
from fedpact.common.worth import Comparison, Worth

_KINDS = (
    ("alone", "o", "tab:gray"),
    ("shared", "s", "tab:blue"),
    ("personal", "D", "tab:green"),
)


def draw_worth(worth: Worth, path: Path) -> None:
    """Each site's score alone, shared and personal, in one line; losers in red.

    Raises:
        UsageError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    sets: list[tuple[str, list[Comparison | None]]] = [
        ("own test records", [site.own for site in worth.sites]),
        ("public test set", [site.public for site in worth.sites]),
    ]
    shown = [(title, found) for title, found in sets if any(found)]
    figure = new_figure(5.0 * len(shown) + 1, 0.45 * len(worth.sites) + 1.8)
    for number, (title, found) in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), number)
        for row, compared in enumerate(found):
            if compared is not None:
                _line(axes, row, compared)
        axes.set_yticks(range(len(worth.sites)), [site.site for site in worth.sites])
        axes.invert_yaxis()
        axes.set(title=title, xlabel=worth.measure)
        axes.grid(axis="x", alpha=0.3)
        for label, site in zip(axes.get_yticklabels(), worth.sites, strict=True):
            label.set_color("tab:red" if site.site in worth.losers else "black")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))
    figure.legend(kinds.values(), kinds.keys(), loc="outside lower center", ncols=3)
    _save(figure, path)


def draw_course(
    title: str,
    measure: str,
    rounds: Sequence[int],
    courses: Mapping[str, Sequence[float | None]],
    path: Path,
) -> None:
    """Scores over the rounds of a run, a line for each through the rounds that have one.

    Raises:
        UsageError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    figure = new_figure(7.0, 4.0)
    axes = figure.add_subplot()
    for name, values in courses.items():
        known = [(n, v) for n, v in zip(rounds, values, strict=True) if v is not None]
        axes.plot(*zip(*known, strict=True), marker=".", label=name)
    axes.set(title=title, xlabel="round", ylabel=measure)
    axes.grid(alpha=0.3)
    if courses:
        axes.legend()
    _save(figure, path)


def _line(axes: Any, row: int, compared: Comparison) -> None:
    scores = {kind: getattr(compared, kind) for kind, _, _ in _KINDS}
    places = [score.score for score in scores.values() if score is not None]
    axes.plot([min(places), max(places)], [row, row], color="lightgray", zorder=1)
    for kind, marker, color in _KINDS:
        if scores[kind] is not None:
            axes.scatter(
                scores[kind].score, row, marker=marker, color=color, label=kind, zorder=2
            )


def require_library() -> None:
    """See that figures can be drawn, before hours go by.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "matplotlib is not installed, which draws figures.",
            advice="Install it: pip install 'fedpact[figures]'.",
        )


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    require_library()
    # Not pyplot: it would look for a display, and keep every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with disk_errors():
        figure.savefig(path, dpi=150, format="png")
