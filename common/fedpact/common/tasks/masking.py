"""What the model does not see and must say: some of a record's tokens, drawn at random.

Which they are follows from the record and a number that training draws anew for each step, so
that a record's loss depends on nothing else in its batch. Where nobody draws, they are the
same each time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpact.common.errors import ModelError
from fedpact.common.records import Column

NOT_SAID: Final = -100


def mask_token(tokenizer: Any) -> int:
    """The number of the token that stands for what is not seen.

    Raises:
        ModelError: the tokeniser has none.
    """
    if tokenizer.mask_token_id is None:
        raise ModelError(
            "The base model's tokeniser has no mask token.",
            advice="Take a model that was pre-trained by masking, such as BERT.",
        )
    return int(tokenizer.mask_token_id)


def seeds(rows: Sequence[npt.ArrayLike]) -> Column:
    """A number below 2^62 for each record, which follows from its tokens alone, shape [N]."""
    digests = (
        hashlib.blake2b(np.asarray(row, dtype="<i8").tobytes(), digest_size=8).digest()
        for row in rows
    )
    return Column(np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64) & (2**62 - 1))


def draw(may_be: Tensor, seeds_of: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Draw what each record does not see: a share of what it may not, and one token at least.

    Args:
        may_be: which tokens may be drawn, shape [n, tokens].
        seeds_of: a number for each record, shape [n].
        share: how many of them, in (0, 1].

    Returns:
        which were drawn, shape [n, tokens]; and for each token a number in [0, 1), drawn too.
    """
    places, drawn = may_be.cpu().numpy(), np.zeros(may_be.shape, dtype=bool)
    chances = np.zeros(may_be.shape, dtype=np.float32)
    for row, seed in enumerate(seeds_of.tolist()):
        # Not the generator of the noise: no promise hangs on what is masked.
        generator = np.random.default_rng(seed)
        (candidates,) = places[row].nonzero()
        count = min(len(candidates), max(1, round(share * len(candidates))))
        chosen = generator.choice(candidates, count, replace=False)
        drawn[row, chosen] = True
        chances[row, chosen] = generator.random(count, dtype=np.float32)
    device = may_be.device
    return torch.from_numpy(drawn).to(device), torch.from_numpy(chances).to(device)


def logits_at(model: Any, read: Mapping[str, Tensor], places: Tensor) -> Tensor:
    """What a language model says of some of the tokens, shape [number of places, vocabulary].

    Its last layer, the one with a row for each word there is, is computed for these tokens alone:
    for all of them it would take a third of a small model's time, and much memory. Where that
    layer is trained it sees all, since DP-SGD needs its inputs record by record.

    Args:
        model: a transformers model that gives logits, with or without an adapter.
        read: what it reads.
        places: which tokens, shape [n, tokens].
    """
    head = model.get_output_embeddings()
    if head is None or any(parameter.requires_grad for parameter in head.parameters()):
        return cast("Tensor", model(**read).logits[places])

    def choose(_: object, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden, *more = given
        return (hidden[places], *more) if hidden.shape[:2] == places.shape else None

    handle = head.register_forward_pre_hook(choose)
    try:
        logits: Tensor = model(**read).logits
    finally:
        handle.remove()
    # Some families multiply by that layer's weights without calling it.
    return logits if logits.dim() == places.dim() else logits[places]


def mean_by_record(values: Tensor, drawn: Tensor) -> Tensor:
    """Each record's mean, shape [n], of values of the tokens drawn, in their order; 0 of none.

    A record without any still has its row, and so its (zero) gradient.
    """
    counts = drawn.sum(dim=1)
    sums = values.new_zeros(len(drawn)).index_add_(0, drawn.nonzero()[:, 0], values)
    return sums / counts.clamp(min=1)
