"""Seconds per round of a federation on this machine: fedpact's over stock Flower's.

Two sites on loopback with TLS and node authentication, MiniLM with LoRA r=8, one optimiser
step on 8 records a round. fedpact runs as anywhere (`fedpact server up`, two `fedpact client
up`, DP-SGD with a durable ledger); stock Flower 1.41 runs the app in `stock_flower/` as its
tutorials do (SuperLink, two SuperNodes, FedAvg with its train and evaluate phases, no DP).
Each round's seconds are from the run's own clock, start-up and the first round apart.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tomli_w

from _report import parser, report
from fedpact.common import base_models
from fedpact.common.base_models import file_digest
from fedpact.common.study_learning import BaseModelRef
from fedpact.server.superlink import free_ports
from fedpact.simulations.reports import NOT_SERIOUS, SERIOUS, VOICES, write_demo_data
from stock_flower import deployment

BASE = "sentence-transformers/all-MiniLM-L6-v2"
RECORDS, BATCH, MAX_LENGTH = 200, 8, 64
_FEDPACT = [sys.executable, "-m", "fedpact.simulations"]
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--rounds", type=int, default=20, help="fedpact's rounds")
    command_line.add_argument("--stock-rounds", type=int, default=4)
    command_line.add_argument("--keep", type=Path, help="a new folder to keep everything in")
    command_line.add_argument("--skip-stock", action="store_true", help="fedpact's side alone")
    args = command_line.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        made = write_demo_data(folder / "data", records=RECORDS)
        data = list(made.sites.values())[:2]
        ours_start, ours = fedpact_run(folder / "fedpact", data, args.rounds)
        if args.skip_stock:
            print([round(seconds, 3) for seconds in ours], statistics.median(ours[1:]))
            return
        base = base_models.locate(BaseModelRef(base=BASE))
        (folder / "stock").mkdir()
        stock = deployment.run(folder / "stock", data, base, args.stock_rounds)
    ours_median = statistics.median(ours[1:])
    stock_median = statistics.median(stock.rounds[1:])
    report(
        title="Seconds per round, fedpact over stock Flower, 2 sites, TLS, node authentication",
        figure=ours_median / stock_median,
        target="<= 0.12",
        parts={
            "fedpact_seconds_per_round": ours_median,
            "fedpact_fastest_and_slowest": f"{min(ours[1:]):.2f} to {max(ours[1:]):.2f}",
            "fedpact_rounds": len(ours) - 1,
            "fedpact_first_round_seconds": ours[0],
            "fedpact_start_seconds": ours_start,
            "stock_seconds_per_round": stock_median,
            "stock_fastest_and_slowest": (
                f"{min(stock.rounds[1:]):.1f} to {max(stock.rounds[1:]):.1f}"
            ),
            "stock_rounds": len(stock.rounds) - 1,
            "stock_first_round_seconds": stock.rounds[0],
            "stock_start_seconds": stock.start_up,
            "records_per_step": BATCH,
        },
        form=args.format,
    )


def fedpact_run(folder: Path, data: Sequence[Path], rounds: int) -> tuple[float, list[float]]:
    """Run a federation by its own commands.

    Returns:
        seconds until the run was started, and of each round.
    """
    began = time.monotonic()
    folder.mkdir(parents=True)
    home = f"--home={folder / 'coordinator'}"
    port, service_port = free_ports(2)
    _fedpact("server", "init", home, f"--port={port}", f"--service-port={service_port}")
    with ExitStack() as running:
        running.enter_context(_up("server", folder / "coordinator"))
        while not json.loads(_fedpact("server", "status", home, "--format=json"))["up"]:
            time.sleep(0.2)
        for voice, file in zip(VOICES, data, strict=False):
            site = folder / file.stem
            token = _fedpact(
                *("server", "invite", home, voice.institution, f"--sector={voice.sector}")
            ).strip()
            _fedpact("client", "join", token, f"--home={site}")
            (site / "policy.toml").write_text('approval = "automatic"\n', encoding="utf-8")
            _fedpact("client", "dataset", "add", "reports", str(file), f"--home={site}")
            running.enter_context(_up("client", site))
        study = _write_study(folder / "study.toml", rounds)
        run = json.loads(_fedpact("run", "start", str(study), home, "--format=json"))["run"]
        started = time.monotonic() - began
        result = json.loads(_fedpact("run", "watch", run, home, "--format=json"))
    assert result["status"] == "completed", result["message"]
    assert all(r["sites"] == len(data) for r in result["rounds"])
    return started, [float(r["seconds"]) for r in result["rounds"]]


def _write_study(path: Path, rounds: int) -> Path:
    weights = base_models.locate(BaseModelRef(base=BASE)) / "model.safetensors"
    document = {
        "study": {"name": "round-overhead"},
        "task": {"labels": [NOT_SERIOUS, SERIOUS]},
        "model": {
            "base": BASE,
            "sha256": file_digest(weights),
            "pooling": "first",
        },  # as the other
        "training": {
            "rounds": rounds,
            "local_steps": 1,
            "batch_size": BATCH,
            "learning_rate": 5e-3,
            "max_length": MAX_LENGTH,
        },
        "federation": {"quorum": 2},
        "institutions": [
            {"name": v.institution, "sector": v.sector, "records": RECORDS} for v in VOICES[:2]
        ],
    }
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


def _fedpact(*arguments: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [*_FEDPACT, *arguments], check=False, capture_output=True, text=True, env=_ENVIRONMENT
    )
    if done.returncode:
        raise RuntimeError(f"fedpact {' '.join(arguments[:2])}: {done.stderr}")
    return done.stdout


@contextmanager
def _up(who: str, home: Path) -> Iterator[None]:
    """Keep `fedpact server up` or `fedpact client up` running."""
    with (home.parent / f"{home.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*_FEDPACT, who, "up", f"--home={home}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
