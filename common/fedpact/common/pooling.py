"""How a text's tokens become the one vector that the head sees.

The library's own sequence classifiers look at the first token, in most of them through a layer
that pre-training left for another purpose. Models made for sentences are trained to be read as
the mean over all tokens, scaled to length 1, and say so in the files that sentence-transformers
keeps beside the weights. Under DP much hangs on it: a few noisy steps learn what lies open in
the features, and little else.

A pooled model has names of its own (`backbone`): an adapter of one does not load into the
library's classifier, whose logits would silently be wrong.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.errors import ModelError

Wanted = Literal["auto", "first", "mean"]
_BACKBONE = "backbone"


@dataclass(frozen=True)
class Pooling:
    """What the head sees.

    Attributes:
        mean: the mean over a text's tokens; without it, what the library's classifier takes.
        normalise: whether that mean is scaled to L2 norm 1.
    """

    mean: bool = False
    normalise: bool = False

    @classmethod
    def of(cls, folder: Path, wanted: Wanted) -> Self:
        """The pooling that a study wants of the model in a folder.

        `auto` is what the model declares of itself: the mean where its sentence-transformers
        files say so. A mean is normalised where they do that too.

        Raises:
            ModelError: these files cannot be read.
        """
        if wanted == "first":
            return cls()
        kinds, declared = _declared(folder)
        if wanted == "auto" and not ("Pooling" in kinds and declared.pooling_mode_mean_tokens):
            return cls()
        return cls(mean=True, normalise="Normalize" in kinds)


class MeanPooled(nn.Module):
    """A classifier on the mean over tokens: transformers' bare model and one linear layer.

    Args:
        backbone: gives `last_hidden_state`, shape [n, t, hidden]; its configuration says how many
            labels the head has.
        normalise: whether the mean is scaled to L2 norm 1.
    """

    def __init__(self, backbone: Any, *, normalise: bool) -> None:
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.config.hidden_size, backbone.config.num_labels)
        self._normalise = normalise

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Tensor) -> Any:
        """Logits of each text, shape [n, labels], where transformers has them.

        Args:
            input_ids: shape [n, t].
            attention_mask: 1 for a text's tokens, 0 for padding, shape [n, t].
            more: what else the backbone takes, such as `token_type_ids` of pairs.
        """
        from transformers.modeling_outputs import SequenceClassifierOutput

        output = self.backbone(input_ids, attention_mask=attention_mask, **more)
        hidden = output.last_hidden_state
        pooled = mean_of_tokens(hidden, attention_mask, normalise=self._normalise)
        return SequenceClassifierOutput(logits=self.classifier(pooled))


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor, *, normalise: bool) -> Tensor:
    """The mean over each text's own tokens, float32, shape [n, hidden]; zero where it has none."""
    mask = attention_mask[..., None].float()
    mean = (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1)
    return functional.normalize(mean, dim=1) if normalise else mean


def lora_targets(
    names: Sequence[str], pooling: Pooling, layers: Sequence[int] | None = None
) -> list[str] | str:
    """`target_modules` for PEFT: the names; in a pooled model, an expression that no other fits.

    Args:
        names: of linear layers.
        pooling: what the head sees.
        layers: the transformer layers that a pooled model's expression is to name; None: all.
    """
    if not pooling.mean:
        return list(names)
    numbers = "" if layers is None else rf"(?:[^.\d]+\.)*(?:{'|'.join(map(str, layers))})\."
    return rf"{_BACKBONE}\.{numbers}(?:.*\.)?(?:{'|'.join(map(re.escape, names))})"


class _Module(BaseModel):
    type: str
    path: str


class _Declared(BaseModel):
    pooling_mode_mean_tokens: bool = False


_MODULES = TypeAdapter(tuple[_Module, ...])


def _declared(folder: Path) -> tuple[set[str], _Declared]:
    """Which modules follow each other in a sentence-transformers model, and how it pools."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return set(), _Declared()
    try:
        modules = {
            one.type.rpartition(".")[2]: one
            for one in _MODULES.validate_json(listing.read_bytes())
        }
        if "Pooling" not in modules:
            return set(modules), _Declared()
        config = folder / modules["Pooling"].path / "config.json"
        return set(modules), _Declared.model_validate_json(config.read_bytes())
    except (OSError, ValidationError) as error:
        raise ModelError(
            f"{folder} does not say how its model is pooled: {error}",
            advice="Take the whole folder.",
            told="The base model here does not say how it is pooled.",
        ) from error
