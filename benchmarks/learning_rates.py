"""Which learning rate for which batch: the head alone under DP, on MiniLM's features of real texts.

    python benchmarks/learning_rates.py --data FOLDER

One site, steps on Poisson batches with gradients clipped to 1, by SGD or by the coordinator's Adam.
What the base model makes of a text is computed once. Accuracy is on a fifth of the training records,
held out; mean and standard deviation over five seeds. The data is as `accuracy.py` takes it.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

import _minilm
from _report import Value, parser, report
from _rows import EMOTION, SST2, Data
from _study import DELTA
from fedpact.common import accounting, base_models, server_optimizer, tabular
from fedpact.common.adapter import Weights
from fedpact.common.pooling import mean_of_tokens
from fedpact.common.study_together import Aggregation
from fedpact.simulations.comparison_results import Spread

Matrix = npt.NDArray[np.float32]
STEPS, SEEDS = 50, 5
EPSILONS = (8.0, 2.0)
SHARES = (0.03, 0.1, 0.3, 1.0)
ADAM, SGD = "Adam", "SGD"
WAYS = {
    ADAM: [
        Aggregation(server_optimizer="adam", server_learning_rate=rate)
        for rate in (0.025, 0.05, 0.1, 0.2, 0.4)
    ],
    SGD: [
        Aggregation(server_optimizer="momentum", server_momentum=0.0, server_learning_rate=rate)
        for rate in (1.0, 2.0, 4.0, 8.0, 16.0)
    ],
}
USUAL = 0.1


def features(data: Data, folder: Path) -> tuple[Matrix, Matrix]:
    """What the head sees of each text, a constant beside it [n, d + 1], and its label [n, labels]."""
    columns = tabular.read(folder / data.folder / f"train{data.suffix}").columns
    texts = list(map(str, columns["text"]))
    _, labels = np.unique(list(map(str, columns["label"])), return_inverse=True)
    study = _minilm.study()
    model = AutoModel.from_pretrained(base_models.locate(study.model)).eval()
    tokenizer = base_models.load_tokenizer(study)
    found = torch.ones(len(texts), model.config.hidden_size + 1)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), 32):
        some = by_length[start : start + 32]
        tokens = tokenizer(
            [texts[i] for i in some],
            truncation=True,
            max_length=data.max_length,
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state
        found[some, :-1] = mean_of_tokens(hidden, tokens["attention_mask"], normalise=True)
    one_hot = functional.one_hot(torch.from_numpy(labels)).float()
    return found.numpy(), one_hot.numpy()


def accuracy(
    x: Matrix, y: Matrix, how: Aggregation, share: float, sigma: float, seed: int
) -> float:
    """Train the head on four fifths by DP-SGD, or DP-Adam; percent right on the last fifth."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    held, kept = order[: len(x) // 5].numpy(), order[len(x) // 5 :].numpy()
    weights, state = Weights.from_tensors({"head": np.zeros((y.shape[1], x.shape[1]))}), None
    for _ in range(STEPS):
        drawn = kept[(torch.rand(len(kept), generator=generator) < share).numpy()]
        head = weights.tensors()["head"]
        noise = sigma * torch.randn(head.shape, generator=generator)
        summed = clipped_sum(torch.from_numpy(x[drawn]), torch.from_numpy(y[drawn]), head)
        mean = (summed + noise) / (share * len(kept))
        downhill = Weights.from_tensors({"head": -mean.numpy()})
        change, state = server_optimizer.step(how, downhill, state)
        weights = weights.plus(change)
    guessed = (x[held] @ weights.tensors()["head"].T).argmax(1)
    return float(100 * (guessed == y[held].argmax(1)).mean())


def clipped_sum(x: Tensor, y: Tensor, head: Matrix) -> Tensor:
    """The sum of the records' gradients of cross-entropy, each clipped to norm 1; as the head."""
    error = torch.softmax(x @ torch.from_numpy(head).T, 1) - y
    norms = error.norm(dim=1) * x.norm(dim=1)
    return torch.matmul((error / norms.clamp(min=1)[:, None]).T, x)


def tried(x: Matrix, y: Matrix, way: str, share: float, sigma: float) -> dict[float, Spread]:
    """Each learning rate's accuracy."""
    return {
        how.server_learning_rate: Spread.of(
            [accuracy(x, y, how, share, sigma, seed) for seed in range(SEEDS)]
        )
        for how in WAYS[way]
    }


def text(spread: Spread) -> str:
    return f"{spread.mean:.1f} ± {spread.sd or 0:.1f}"


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--data", type=Path, default=os.environ.get("FEDPACT_DATA"))
    args = command_line.parse_args()
    if args.data is None or not (Path(args.data) / SST2.folder).is_dir():
        print(f"learning_rates: not run, there is no {SST2.folder} in --data")
        return
    parts: dict[str, Value] = {}
    lost = 0.0
    for data in (SST2, EMOTION):
        x, y = features(data, Path(args.data))
        for epsilon, share in itertools.product(EPSILONS, SHARES):
            sigma = accounting.noise_multiplier(epsilon, DELTA, share, STEPS)
            batch = share * len(x) * 4 / 5
            what = (
                f"{data.folder}, ε {epsilon:g}, batch {batch:.0f}, σ/batch {sigma / batch:.4f}"
            )
            found = {way: tried(x, y, way, share, sigma) for way in WAYS}
            for way, rates in found.items():
                shown = "; ".join(f"{rate:g}: {text(one)}" for rate, one in rates.items())
                parts[f"{what}, {way}"] = shown
            best = max(one.mean for one in found[ADAM].values())
            lost = max(lost, best - found[ADAM][USUAL].mean)
    report(
        title=f"Head alone, {STEPS} steps: points that Adam's rate {USUAL} is below the best, at most",
        figure=lost,
        parts=parts,
        form=args.format,
    )


if __name__ == "__main__":
    main()
