"""What an adapter in the upper layers alone saves: its private step over one of an adapter in all.

MiniLM with LoRA r=8 on query and value, a logical batch of records of many lengths, in the precision
that `auto` takes. Steps are timed in turn, once each record has been through the lower layers.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

import _minilm
from _report import Value, parser, report
from fedpact.client.trainer import LocalTraining, Trainer
from fedpact.common import model as models
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study

LAYERS: dict[str, list[int] | None] = {
    "all six": None,
    "upper three": [3, 4, 5],
    "upper two": [4, 5],
}


def stepper(layers: Sequence[int] | None, records: EncodedRecords) -> Callable[[], float]:
    """A function that takes one private step on all records and says how many seconds it took."""
    document = _minilm.study(precision="auto").model_dump(mode="json")
    document["adapter"]["layers_to_transform"] = layers
    study = Study.model_validate(document)
    model = models.build(study, _minilm.CPU)
    trainer = Trainer(model, _minilm.task(), pad_id=_minilm.PAD_ID, device=_minilm.CPU)
    how = LocalTraining(
        steps=1,
        batch_size=len(records),
        learning_rate=0.01,
        optimizer="sgd",
        mechanism=SubsampledGaussian(1.0, 1.0, 1),
        precision=models.precision_on(_minilm.CPU, "auto"),
        max_tokens=2048,
    )
    start = models.get_adapter(model)

    def run() -> float:
        began = time.perf_counter()
        trainer.train(start, records, how)
        return time.perf_counter() - began

    return run


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--batch", type=int, default=512)
    command_line.add_argument("--times", type=int, default=5)
    args = command_line.parse_args()
    lengths = np.random.default_rng(0).gamma(4.2, 5.3, args.batch).astype(np.int64) + 4
    records = _minilm.records(np.clip(lengths, 4, 128))
    steps = {name: stepper(layers, records) for name, layers in LAYERS.items()}
    first = {name: run() for name, run in steps.items()}
    timed = [{name: run() for name, run in steps.items()} for _ in range(args.times)]
    seconds = {name: statistics.median(one[name] for one in timed) for name in steps}
    parts: dict[str, Value] = {f"seconds, {name}": value for name, value in seconds.items()}
    parts |= {f"seconds of the first step, {name}": value for name, value in first.items()}
    parts |= {
        "upper two over all": seconds["upper two"] / seconds["all six"],
        "records": args.batch,
    }
    report(
        title="Private step, adapter in the upper three of six layers, over one in all",
        figure=seconds["upper three"] / seconds["all six"],
        target="<= 0.6",
        parts=parts,
        form=args.format,
    )


if __name__ == "__main__":
    main()
