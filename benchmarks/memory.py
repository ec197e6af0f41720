"""What privacy costs in memory: peak of a private training step over plain PEFT training.

MiniLM, a logical batch of 512 records cut into the same micro-batches, each side in a
process of its own; the peak is the process' largest resident size, libraries included.
"""

import json
import resource
import subprocess
import sys

import numpy as np
import torch

import _minilm
from _report import parser, report
from fedpact.common.records import EncodedRecords

LOGICAL_BATCH = 512
MAX_TOKENS = 4096


def peak_mib() -> float:
    """The largest resident size of this process so far, in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def training_records() -> EncodedRecords:
    lengths = np.random.default_rng(0).integers(8, 129, LOGICAL_BATCH)
    return _minilm.records(lengths)


def run_private(method: str) -> None:
    """One logical step as a site takes it."""
    from fedpact.client.trainer import LocalTraining, Trainer
    from fedpact.common import model as models
    from fedpact.common.mechanism import SubsampledGaussian

    model = models.build(_minilm.study(method), _minilm.CPU)
    trainer = Trainer(model, _minilm.task(), pad_id=_minilm.PAD_ID, device=_minilm.CPU)
    how = LocalTraining(
        steps=1,
        batch_size=LOGICAL_BATCH,
        learning_rate=0.01,
        optimizer="sgd",
        mechanism=SubsampledGaussian(1.0, 1.0, 1),
        max_tokens=MAX_TOKENS,
    )
    trainer.train(models.get_adapter(model), training_records(), how)


def run_plain(method: str) -> None:
    """The same micro-batches through PEFT and PyTorch alone."""
    from fedpact.client.batching import micro_batches
    from fedpact.common import model as models

    model = models.build(_minilm.study(method), _minilm.CPU)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    records = training_records()
    for micro in micro_batches(np.arange(LOGICAL_BATCH), records.lengths, MAX_TOKENS):
        batch = records.collate(micro, pad_id=_minilm.PAD_ID, device=_minilm.CPU)
        labels = batch.pop("labels")
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels, reduction="sum")
        (loss / LOGICAL_BATCH).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def measure(side: str, method: str) -> float:
    """Peak of one side in its own process, MiB."""
    command = [sys.executable, __file__, "--side", side, "--method", method]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--side", choices=("private", "plain"))
    command_line.add_argument("--method", choices=("ffa-lora", "fedavg"), default="fedavg")
    args = command_line.parse_args()
    if args.side:
        run = run_private if args.side == "private" else run_plain
        run(args.method)
        print(json.dumps({"peak_mib": peak_mib()}))
        return
    plain, private = measure("plain", args.method), measure("private", args.method)
    report(
        title=f"Peak memory, private over plain training, {args.method}",
        figure=private / plain,
        target="<= 1.25",
        parts={
            "plain_peak_mib": plain,
            "private_peak_mib": private,
            "logical_batch_records": LOGICAL_BATCH,
            "max_tokens": MAX_TOKENS,
        },
        form=args.format,
    )


if __name__ == "__main__":
    main()
