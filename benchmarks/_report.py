"""How every benchmark here reports: one table, or one JSON object with `--format json`.

args = arguments(__doc__)
report(title="...", figure=1.04, parts={"private_seconds": 0.52, ...}, form=args.format)
"""

import argparse
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

Value = float | int | str
_LIBRARIES = ("torch", "transformers", "peft", "opacus", "flwr")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with `--format`; add to it what the benchmark needs."""
    command_line = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    command_line.add_argument("--format", choices=("table", "json"), default="table")
    return command_line


def arguments(description: str | None) -> argparse.Namespace:
    """The arguments of a benchmark that takes none but `--format`."""
    return parser(description).parse_args()


def report(
    *,
    title: str,
    figure: float,
    parts: Mapping[str, Value],
    target: str = "",
    form: str = "table",
) -> None:
    """Print what was measured.

    Args:
        title: what the figure is, in words.
        figure: the one number.
        parts: what it was computed from, units in the names.
        target: what it should be, such as `<= 1.10`.
        form: `table` or `json`.
    """
    machine = measured_on()
    if form == "json":
        content = {"title": title, "figure": figure, "target": target, "parts": dict(parts)}
        print(json.dumps({**content, "measured_on": machine}))
        return
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("value", justify="right")
    for name, value in parts.items():
        table.add_row(name, _text(value))
    table.add_section()
    table.add_row("figure", _text(figure), style="bold")
    if target:
        table.add_row("target", target)
    Console().print(table)
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value))


def measured_on() -> dict[str, Value]:
    """The machine and the libraries' versions, as far as they are there."""
    machine: dict[str, Value] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 0,
        "gpu": "",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # Above the number of cores, others were measured too.
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else "",
    }
    for library in _LIBRARIES:
        try:
            machine[library] = version(library)
        except PackageNotFoundError:
            continue
    if "torch" in machine:
        import torch

        machine["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
