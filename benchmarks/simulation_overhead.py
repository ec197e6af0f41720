"""Seconds per round of a simulation with 20 sites: in one process over Flower's Ray backend.

The same study (MiniLM with LoRA r=8, one private step on 8 records a round), the same sites
and the same round loop, `fedpact simulate` with `--grid process` and with `--grid ray`. Each
round's seconds are from the run's own clock, start-up and the first round apart. Beside them
stands the plain app of `stock_flower/` on the same backend: it makes its model anew for each
message, as Flower's tutorials do, and has a train and an evaluate phase.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomli_w
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from _report import parser, report
from fedpact.common import base_models
from fedpact.common.study_learning import BaseModelRef
from fedpact.simulations.reports import NOT_SERIOUS, SERIOUS, write_demo_data

BASE = "sentence-transformers/all-MiniLM-L6-v2"
RECORDS, BATCH, MAX_LENGTH = 100, 8, 64
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray steps back behind other processes by default; here both sides count alike.
    "RAY_worker_niceness": "0",
}


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--sites", type=int, default=20)
    command_line.add_argument("--rounds", type=int, default=5)
    command_line.add_argument("--stock-rounds", type=int, default=2)
    command_line.add_argument("--stock-app", type=Path, help="used by the script itself")
    args = command_line.parse_args()
    if args.stock_app:
        run_stock_app(args.stock_app, args.sites, args.stock_rounds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = write_data(folder, args.sites)
        study = write_study(folder, args.rounds)
        ours = simulate(study, data, args.sites, "process")
        ray = simulate(study, data, args.sites, "ray")
        stock = stock_app(folder, args.sites, args.stock_rounds)
    ours_median, ray_median = statistics.median(ours[1][1:]), statistics.median(ray[1][1:])
    stock_median = statistics.median(stock)
    report(
        title=f"Seconds per round of a simulation with {args.sites} sites, one process over Ray",
        figure=ours_median / ray_median,
        target="<= 0.2",
        parts={
            "process_seconds_per_round": ours_median,
            "process_first_round_seconds": ours[1][0],
            "process_start_seconds": ours[0],
            "ray_seconds_per_round": ray_median,
            "ray_first_round_seconds": ray[1][0],
            "ray_start_seconds": ray[0],
            "rounds": args.rounds - 1,
            "stock_app_on_ray_seconds_per_round": stock_median,
            "stock_app_rounds": len(stock),
            "process_over_stock_app_on_ray": ours_median / stock_median,
            "ray_over_stock_app_on_ray": ray_median / stock_median,
        },
        form=args.format,
    )


def write_data(folder: Path, sites: int) -> Path:
    """One file with the records of all sites."""
    made = write_demo_data(folder / "data", records=RECORDS * sites)
    return next(iter(made.sites.values()))


def write_study(folder: Path, rounds: int) -> Path:
    document = {
        "study": {"name": "simulation-overhead"},
        "task": {"labels": [NOT_SERIOUS, SERIOUS]},
        "model": {"base": BASE, "pooling": "first"},  # as the other
        "training": {
            "rounds": rounds,
            "local_steps": 1,
            "batch_size": BATCH,
            "learning_rate": 5e-3,
            "max_length": MAX_LENGTH,
        },
    }
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


def simulate(study: Path, data: Path, sites: int, grid: str) -> tuple[float, list[float]]:
    """Run `fedpact simulate`.

    Returns:
        the seconds that were not spent in rounds, and those of each round.
    """
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fedpact.simulations", "simulate", str(study)),
            *(f"--data={data}", f"--sites={sites}", f"--grid={grid}"),
            *(f"--folder={study.parent / grid}", "--format=json"),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **_QUIET},
    )
    total = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"--grid {grid}: {done.stderr[-2000:]}")
    result = json.loads(done.stdout)
    assert result["status"] == "completed", result["message"]
    assert all(r["sites"] == sites for r in result["rounds"])
    rounds = [float(r["seconds"]) for r in result["rounds"]]
    return total - sum(rounds), rounds


def stock_app(folder: Path, sites: int, rounds: int) -> list[float]:
    """Seconds of each round of the plain app on Flower's Ray backend, in its own process."""
    work = folder / "stock"
    work.mkdir()
    subprocess.run(
        [
            *(sys.executable, __file__, f"--stock-app={work}"),
            *(f"--sites={sites}", f"--stock-rounds={rounds}"),
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **_QUIET},
    )
    lines = (work / "clock").read_text(encoding="utf-8").splitlines()
    ticks = [float(line.split()[1]) for line in lines]
    assert len(ticks) == rounds + 1
    return [after - before for before, after in itertools.pairwise(ticks)]


def run_stock_app(work: Path, sites: int, rounds: int) -> None:
    """Run the plain app on Ray; its configuration is put in, as `flwr run` would."""
    from flwr.simulation import run_simulation

    from stock_flower.stock_app import client_app, server_app

    config: dict[str, bool | float | int | str] = {
        "base": str(base_models.locate(BaseModelRef(base=BASE))),
        "clock": str(work / "clock"),
        "num-server-rounds": rounds,
        "batch-size": BATCH,
        "learning-rate": 5e-3,
        "max-length": MAX_LENGTH,
    }
    data = next((work.parent / "data").glob("[!p]*.csv"))
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main_(grid: Grid, context: Context) -> None:
        context.run_config = config
        while len(list(grid.get_node_ids())) < sites:
            time.sleep(0.1)
        server_app.main(grid, context)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        context.run_config, context.node_config["data"] = config, str(data)
        return client_app.train(message, context)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        context.run_config, context.node_config["data"] = config, str(data)
        return client_app.evaluate(message, context)

    run_simulation(
        server,
        client,
        num_supernodes=sites,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main()
