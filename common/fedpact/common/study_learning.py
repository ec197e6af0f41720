"""What a study says of learning: base model, adapter, training, privacy."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedpact.common.study_words import MAX_STEPS, Digest, OptimizerName
from fedpact.common.task_section import Section, Word


class BaseModelRef(Section):
    """`[model]`: which pre-trained weights, exactly."""

    base: Word = Field(
        min_length=1, description="A Hugging Face model id, or a local folder with the model."
    )
    revision: Word = Field(
        default="main", description="The commit of the model id (not used for a folder)."
    )
    sha256: Digest | None = Field(
        default=None, description="SHA-256 that `model.safetensors` must have."
    )
    pooling: Literal["auto", "first", "mean"] = Field(
        default="auto",
        description="What the head sees of a whole text: first is the library's own classifier, on "
        "the first token; mean is the mean over all tokens; auto is the mean where the model's files "
        "say that it was trained for it. The mean is scaled to length 1 where they say that. For "
        "text-classification, multi-label-classification and text-regression.",
    )


class Adapter(Section):
    """`[adapter]`: the LoRA adapter, in the words of `peft.LoraConfig`."""

    r: int = Field(default=8, ge=1, le=256, description="LoRA rank.")
    lora_alpha: int = Field(
        default=16, ge=1, le=1_000_000, description="LoRA scale: updates count alpha/r times."
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before LoRA's A.")
    target_modules: tuple[Word, ...] = Field(
        default=("query", "value"),
        min_length=1,
        description="The linear layers that LoRA adapts.",
    )
    layers_to_transform: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="The numbers, from 0, of the transformer layers in which they are adapted; without "
        "it, all. What lies below the lowest of them is computed once for each record, and not "
        "in every step.",
    )
    modules_to_save: tuple[Word, ...] = Field(
        default=("classifier",),
        description="Layers trained in full: the head, by default what the task calls it.",
    )
    start: Word | None = Field(
        default=None,
        description="A folder with the adapter that the first round begins with, such as one trained on "
        "public data; a path next to the coordinator's study file. Without it, B and the head begin at "
        "zero.",
    )
    start_sha256: Digest | None = Field(
        default=None,
        description="SHA-256 that its `adapter_model.safetensors` must have.",
    )

    @model_validator(mode="after")
    def _digest_is_of_something(self) -> Self:
        if self.start_sha256 is not None and self.start is None:
            raise ValueError("`start_sha256` needs `start`")
        return self

    def start_beside(self, folder: Path) -> Path | None:
        """The folder that `start` names, from the study file's; None without one."""
        return None if self.start is None else folder / self.start


class Training(Section):
    """`[training]`: rounds, steps and the optimiser at each site."""

    rounds: int = Field(default=10, ge=1, le=100_000, description="Rounds of the run.")
    local_steps: int = Field(
        default=1,
        ge=1,
        le=MAX_STEPS,
        description="Optimiser steps that each site takes in a round.",
    )
    batch_size: int = Field(
        default=256,
        ge=1,
        le=1_000_000_000,
        description="Records in a logical batch (persons, where `privacy.unit` is person): the "
        "expected number under Poisson sampling; at most all that an institution has.",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate at the site.")
    optimizer: OptimizerName = Field(
        default="adamw", description="Optimiser at the site; its state starts anew each round."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    proximal_mu: float = Field(
        default=0.0,
        ge=0,
        description="μ of FedProx: each step is also pulled by μ(w - w_received) back to the "
        "adapter received, after clipping and noise.",
    )
    dropout: bool = Field(
        default=False, description="Whether the base model's own dropout is active in training."
    )
    max_length: int = Field(
        default=128,
        ge=4,
        le=8192,
        description="Tokens of a text (of a sound, each 20 ms) that are read; the rest is cut.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Arithmetic; auto takes bf16 where the device has it."
    )
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Seed of the adapter's first values."
    )

    @model_validator(mode="after")
    def _pull_can_work(self) -> Self:
        if self.proximal_mu and self.local_steps == 1:
            raise ValueError(
                "`proximal_mu` does nothing with one local step: nothing has moved yet that it "
                "could pull back"
            )
        self.require_stable("training.proximal_mu", self.proximal_mu)
        return self

    def require_stable(self, key: str, pull: float) -> None:
        """With SGD a pull takes a share of the way back: more than all of it overshoots.

        Raises:
            ValueError: it would.
        """
        if self.optimizer == "sgd" and pull * self.learning_rate > 1:
            raise ValueError(
                f"`{key}` times the learning rate is above 1: with sgd each step would go "
                "further back than it came"
            )


class Privacy(Section):
    """`[privacy]`: the promise to each record or person, in the words of Opacus."""

    mechanism: Literal["dp-sgd", "none"] = Field(
        default="dp-sgd", description="How updates are made private; none means not at all."
    )
    target_epsilon: float = Field(
        default=8.0, gt=0, description="ε that the whole run may cost at each site."
    )
    target_delta: float = Field(default=1e-5, gt=0, lt=1, description="δ of that promise.")
    max_grad_norm: float = Field(
        default=1.0,
        gt=0,
        description="L2 norm to which the gradient of each record (or person) is clipped.",
    )
    clipping: Literal["flat", "automatic"] = Field(
        default="flat",
        description="flat cuts gradients that are longer than `max_grad_norm`; automatic gives "
        "every gradient nearly this length, so that the norm needs no tuning (Bu et al. 2023).",
    )
    unit: Literal["record", "person"] = Field(
        default="record",
        description="Whom the promise covers: adding or removing one record, or one person with "
        "all records.",
    )
    max_records_per_person: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Records of one person in a step, at most, chosen at random each time; needed "
        "where `unit` is person. Their mean gradient is clipped.",
    )
