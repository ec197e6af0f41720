"""What privacy costs in time: the private step over the plain one.

MiniLM with LoRA r=8 on query and value and a head, one micro-batch, noise on; the two are
timed in turn, so that whatever else the machine does slows both.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import _minilm
from _report import parser, report
from fedpact.client.dpsgd import PlainStep, PrivateStep, Step
from fedpact.common import model as models


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)


def stepper(
    model: nn.Module, step: Step, precision: str, shape: tuple[int, int]
) -> Callable[[], float]:
    """A function that takes one step and says how many seconds it took."""
    batch, task = _minilm.batch(*shape), _minilm.task()

    def run() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses, _ = task.loss(model, batch)
        step.add(losses)
        step.apply()
        return time.perf_counter() - start

    return run


def measure(
    method: str, precision: str, shape: tuple[int, int], pairs: int
) -> tuple[float, float]:
    """Median seconds of the plain and of the private step."""
    study = _minilm.study(method)
    plain, private = (models.build(study, _minilm.CPU) for _ in range(2))
    with PrivateStep(
        private,
        optimizer_of(private),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=shape[0],
    ) as private_step:
        run_plain = stepper(plain, PlainStep(optimizer_of(plain)), precision, shape)
        run_private = stepper(private, private_step, precision, shape)
        run_plain(), run_private()
        times = [(run_plain(), run_private()) for _ in range(pairs)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--batch", type=int, default=32)
    command_line.add_argument("--tokens", type=int, default=64)
    command_line.add_argument("--pairs", type=int, default=15)
    command_line.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = command_line.parse_args()
    shape = (args.batch, args.tokens)
    frozen = measure("ffa-lora", args.precision, shape, args.pairs)
    trained = measure("fedavg", args.precision, shape, args.pairs)
    report(
        title=f"Private step over plain step, {args.batch} x {args.tokens}, {args.precision}",
        figure=frozen[1] / frozen[0],
        target="<= 1.10",
        parts={
            "plain_seconds_a_frozen": frozen[0],
            "private_seconds_a_frozen": frozen[1],
            "ratio_a_frozen": frozen[1] / frozen[0],
            "plain_seconds_a_trained": trained[0],
            "private_seconds_a_trained": trained[1],
            "ratio_a_trained": trained[1] / trained[0],
            "pairs": args.pairs,
        },
        form=args.format,
    )


if __name__ == "__main__":
    main()
