"""What one round's aggregation costs the coordinator: seconds and MiB, by method.

Ten sites of rank 8 train A and B of the query and value of every layer of MiniLM or BERT-base; their
updates are random. The figure is the slowest method's seconds at BERT-base's size. The memory is the
peak of what NumPy allocates beyond the updates (`tracemalloc`). For the methods that add to the
frozen weights, the tenth round counts: its residual has grown to full rank or near it, and what a
site is sent then is given too.
"""

import time
import tracemalloc

import numpy as np

from _report import parser, report
from fedpact.common.adapter import Weights
from fedpact.common.study import Study
from fedpact.server import aggregation
from fedpact.server.aggregation import Standing

SITES, RANK, ROUNDS = 10, 8, 10
SIZES = {"MiniLM": (6, 384), "BERT-base": (12, 768)}
METHODS = ("ffa-lora", "fedavg", "fedsvd", "flexlora", "hetlora", "flora", "fedex-lora")


def make_study(method: str) -> Study:
    return Study.model_validate(
        {
            "study": {"name": "aggregation-cost"},
            "task": {"labels": ["no", "yes"]},
            "model": {"base": "none"},
            "adapter": {"r": RANK},
            "aggregation": {"method": method},
        }
    )


def first_adapter(layers: int, width: int, rng: np.random.Generator) -> Weights:
    tensors = {}
    for layer in range(layers):
        for part in ("query", "value"):
            tensors[f"{layer}.{part}.lora_A.weight"] = rng.standard_normal((RANK, width))
            tensors[f"{layer}.{part}.lora_B.weight"] = np.zeros((width, RANK))
    return Weights.from_tensors(tensors)


def one_round(
    study: Study, before: Standing, number: int, rng: np.random.Generator
) -> tuple[Standing, float, float]:
    """What the run has come to, the seconds and the peak of memory in MiB."""
    trained = aggregation.trained_manifest(study, before.adapter.manifest, number)
    updates = [
        Weights(trained, rng.standard_normal(trained.size, dtype=np.float32) * np.float32(1e-2))
        for _ in range(SITES)
    ]
    tracemalloc.start()
    started = time.perf_counter()
    total = aggregation.Round(study, before, number)
    for update in updates:
        total.add(update, 1000)
    after = total.result()
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return after, seconds, peak


def main() -> None:
    args = parser(__doc__).parse_args()
    parts: dict[str, float] = {}
    slowest = 0.0
    for size, (layers, width) in SIZES.items():
        for method in METHODS:
            rng, study = np.random.default_rng(0), make_study(method)
            standing = Standing(first_adapter(layers, width, rng))
            rounds = ROUNDS if study.aggregation.adds_to_base else 1
            for number in range(1, rounds + 1):
                standing, seconds, peak = one_round(study, standing, number, rng)
            parts[f"{size} {method}: seconds"] = seconds
            parts[f"{size} {method}: MiB"] = peak
            parts[f"{size} {method}: MiB sent to a site"] = (
                4 * standing.adapter.flat.size / 2**20
            )
            slowest = max(slowest, seconds)
    report(
        title=f"Aggregating {SITES} updates of rank {RANK}, seconds of the slowest method",
        figure=slowest,
        target="< 60",
        parts=parts,
        form=args.format,
    )


if __name__ == "__main__":
    main()
