"""How much of what goes through the model is padding: padded tokens per useful token.

Poisson batches of 512 expected records from SST-2 (`--data`, or `$FEDPACT_DATA/sst2`), or
from generated lengths where there is no such file.
"""

import csv
import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

import _minilm
from _report import parser, report
from fedpact.client.batching import micro_batches, poisson_batches
from fedpact.common import base_models
from fedpact.common.records import MULTIPLE

Lengths = npt.NDArray[np.int64]
LOGICAL_BATCH = 512
DRAWS = 40


def lengths_of(file: Path) -> Lengths:
    """Tokens of each text of a gzip CSV with the columns text and label."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        texts = [row["text"] for row in csv.DictReader(lines)]
    encoded = base_models.load_tokenizer(_minilm.study())(
        texts, truncation=True, max_length=128
    )
    return np.asarray([len(ids) for ids in encoded["input_ids"]])


def generated_lengths() -> Lengths:
    """Lengths spread about as those of SST-2's sentences."""
    spread = np.random.default_rng(0).gamma(4.2, 5.3, 7000)
    return np.clip(spread.astype(np.int64) + 2, 4, 128)


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--data", type=Path)
    command_line.add_argument("--max-tokens", type=int, default=2048)
    args = command_line.parse_args()
    found = args.data or Path(os.environ.get("FEDPACT_DATA", "")) / "sst2" / "train.csv.gz"
    lengths = lengths_of(found) if found.is_file() else generated_lengths()
    wide = -(-lengths // MULTIPLE) * MULTIPLE
    rng = np.random.default_rng(0)
    draws = poisson_batches(len(lengths), min(1.0, LOGICAL_BATCH / len(lengths)), rng)
    useful = padded = unsorted = cuts = 0
    for batch in itertools.islice(draws, DRAWS):
        cut = micro_batches(batch, wide, args.max_tokens)
        as_drawn = np.array_split(batch, len(cut))
        useful += int(lengths[batch].sum())
        padded += sum(int(len(b) * wide[b].max()) for b in cut)
        unsorted += sum(int(len(b) * lengths[b].max()) for b in as_drawn)
        cuts += len(cut)
    report(
        title="Padded tokens per useful token",
        figure=padded / useful,
        target="<= 1.10",
        parts={
            "lengths": f"{found.parent.name}/{found.name}" if found.is_file() else "generated",
            "records": len(lengths),
            "logical_batches": DRAWS,
            "useful_tokens": useful,
            "padded_tokens": padded,
            "micro_batches_per_logical_batch": cuts / DRAWS,
            "ratio_unsorted_same_number_of_cuts": unsorted / useful,
            "max_tokens": args.max_tokens,
        },
        form=args.format,
    )


if __name__ == "__main__":
    main()
