"""What a federation under DP learns of SST-2, beside the same budget centrally and no DP.

Three sites with a third of the training sentences each (iid), MiniLM with LoRA r=8 on query
and value under FFA-LoRA, ε = 8 at δ = 1e-5 for adding or removing one sentence. Centrally:
one site with all sentences and three times the batch, so the same sampling rate, noise
multiplier, steps and records computed. Without DP: the three sites again, neither clipped
nor noised. Accuracy is on the validation sentences after the last round.

The data is a folder with `sst2/train.csv.gz` and `sst2/validation.csv.gz` (columns text and
label): `--data`, or `$FEDPACT_DATA`. Training runs on all cores, one process per `--jobs`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from _report import parser, report
from fedpact.common.model import file_digest

SITES = 3
EPSILON, DELTA = 8.0, 1e-5
ROUNDS, LOCAL_STEPS, BATCH, LEARNING_RATE, MAX_LENGTH = 6, 4, 512, 1e-2, 64


@dataclass(frozen=True)
class Setting:
    """One of the runs that are compared."""

    name: str
    sites: int
    mechanism: str

    @property
    def batch(self) -> int:
        """Of each site: together they compute the same number of records."""
        return BATCH * SITES // self.sites


SETTINGS = (
    Setting("federated_dp", SITES, "dp-sgd"),
    Setting("central_dp", 1, "dp-sgd"),
    Setting("federated_no_dp", SITES, "none"),
)


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--data", type=Path, default=os.environ.get("FEDPACT_DATA"))
    command_line.add_argument("--rounds", type=int, default=ROUNDS)
    command_line.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    args = command_line.parse_args()
    if args.data is None or not (args.data / "sst2" / "train.csv.gz").is_file():
        print("sst2: not run, there is no sst2/train.csv.gz in --data or $FEDPACT_DATA")
        return
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            pool.submit(run, setting, args.data / "sst2", Path(scratch), args.rounds)
            for setting in SETTINGS
        ]
        results = {s.name: r.result() for s, r in zip(SETTINGS, runs, strict=True)}
    accuracy = {name: result["rounds"][-1]["accuracy"] for name, result in results.items()}
    parts: dict[str, float | int | str] = {
        "epsilon_spent": max(s["epsilon"] for s in results["federated_dp"]["sites"]),
        "delta": DELTA,
    }
    for setting in SETTINGS:
        result = results[setting.name]
        parts[f"{setting.name}_accuracy"] = accuracy[setting.name]
        parts[f"{setting.name}_by_round"] = " ".join(
            f"{r['accuracy']:.3f}" for r in result["rounds"]
        )
        parts[f"{setting.name}_seconds"] = result["wall_seconds"]
    parts |= {
        "points_below_central_dp": 100 * (accuracy["central_dp"] - accuracy["federated_dp"]),
        "points_below_no_dp": 100 * (accuracy["federated_no_dp"] - accuracy["federated_dp"]),
        "steps": args.rounds * LOCAL_STEPS,
        "batch_size_of_each_site": BATCH,
        "learning_rate": LEARNING_RATE,
    }
    report(
        title=f"SST-2 validation accuracy, {SITES} sites, ε = {EPSILON:g}",
        figure=accuracy["federated_dp"],
        parts=parts,
        form=args.format,
    )


def run(setting: Setting, data: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Simulate one setting in a process of its own; the run's result, as it prints it."""
    folder = scratch / setting.name
    folder.mkdir()
    study = write_study(folder, setting, data, rounds)
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fedpact.simulations", "simulate", str(study)),
            *(f"--data={data / 'train.csv.gz'}", f"--sites={setting.sites}"),
            *(f"--folder={folder / 'run'}", "--partition=iid", "--seed=0", "--format=json"),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{setting.name}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["status"] == "completed", result["message"]
    return {**result, "wall_seconds": time.monotonic() - began}


def write_study(folder: Path, setting: Setting, data: Path, rounds: int) -> Path:
    # A public test set lies beside its study; it is gone with this folder.
    test_set = shutil.copyfile(data / "validation.csv.gz", folder / "validation.csv.gz")
    document = {
        "study": {"name": f"sst2-{setting.name.replace('_', '-')}"},
        "task": {"labels": ["negative", "positive"]},
        "model": {"base": "sentence-transformers/all-MiniLM-L6-v2"},
        "training": {
            "rounds": rounds,
            "local_steps": LOCAL_STEPS,
            "batch_size": setting.batch,
            "learning_rate": LEARNING_RATE,
            "max_length": MAX_LENGTH,
        },
        "privacy": {
            "mechanism": setting.mechanism,
            "target_epsilon": EPSILON,
            "target_delta": DELTA,
        },
        "evaluation": {"data": test_set.name, "sha256": file_digest(test_set)},
    }
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
