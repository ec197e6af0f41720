"""What a study says of how what sites learn becomes one adapter, and of what stays their own."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from fedpact.common.study_learning import Training
from fedpact.common.study_words import MAX_STEPS, OptimizerName
from fedpact.common.task_section import Section


class Aggregation(Section):
    """`[aggregation]`: how updates become one adapter."""

    method: Literal[
        "ffa-lora", "fedavg", "fedsvd", "rolora", "flexlora", "fedex-lora", "flora", "hetlora"
    ] = Field(
        default="ffa-lora",
        description="ffa-lora trains B only, with A frozen and shared; fedsvd too, and refactors "
        "BA between rounds; rolora trains B and A in turn; fedavg trains A and B and averages "
        "them apart; flexlora trains A and B and averages their products, fedex-lora and flora too, without "
        "a loss: what no adapter of rank r can hold is added to the frozen weights; hetlora is fedavg "
        "for institutions of different ranks.",
    )
    server_optimizer: Literal["none", "momentum", "adam", "yogi"] = Field(
        default="none",
        description="The coordinator's optimiser, which takes a round's change as a gradient.",
    )
    server_learning_rate: float = Field(
        default=1.0, gt=0, description="Learning rate of the server optimiser."
    )
    server_momentum: float = Field(
        default=0.9, ge=0, lt=1, description="β₁ of the server optimiser."
    )
    server_beta2: float = Field(default=0.99, ge=0, lt=1, description="β₂ of adam and yogi.")
    server_tau: float = Field(
        default=1e-3,
        gt=0,
        description="τ of adam and yogi, added to the root of v: weights whose changes are small "
        "beside it take small steps.",
    )
    robust: Literal[
        "none",
        "median",
        "trimmed-mean",
        "krum",
        "multi-krum",
        "geometric-median",
        "norm-bounding",
        "centred-clipping",
    ] = Field(
        default="none",
        description="The rule that makes one change of many in the place of the weighted mean, "
        "to bear sites that send what they should not. But for norm-bounding, each site has one "
        "vote.",
    )
    bad_sites: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="How many bad sites a robust rule must bear; the quorum must be large enough "
        "for it.",
    )
    norm_bound: float | None = Field(
        default=None,
        gt=0,
        description="L2 norm to which norm-bounding cuts updates, and centred-clipping their "
        "distance from the centre.",
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="L2 norm to which the coordinator clips each site's update; then the mean is over "
        "all institutions, with zero for those that did not answer.",
    )
    target_quantile: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="With it `clip_norm` is the first one only, and adapts until this share of updates "
        "is not clipped (Andrew et al. 2021).",
    )
    noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Noise that the coordinator adds to the sum of clipped updates, over `clip_norm`: "
        "protects institutions against outsiders, not against the coordinator.",
    )

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.robust != "none" and self.trains_both:
            raise ValueError(
                f"`robust` needs a method that trains one of A and B in a round, {self.method} "
                "trains both: the same adapter has many factors, and what is near in A and in B "
                "need not be near in BA; take ffa-lora, fedsvd or rolora"
            )
        if self.server_optimizer != "none" and (self.method == "fedsvd" or self.keeps_factors):
            raise ValueError(
                f"`server_optimizer` cannot go with {self.method}, after whose rounds A and B are "
                "others than the mean of what was sent: what the optimiser remembers would be of "
                "another basis; take ffa-lora, rolora or fedavg"
            )
        if (self.robust in ("norm-bounding", "centred-clipping")) != (
            self.norm_bound is not None
        ):
            raise ValueError(
                "`norm_bound` is for `robust` norm-bounding and centred-clipping, which need it"
            )
        if self.server_optimizer == "none" and self.server_learning_rate != 1.0:
            raise ValueError("`server_learning_rate` needs a `server_optimizer`")
        return self

    @model_validator(mode="after")
    def _keeps_its_promise(self) -> Self:
        """The noise is for what one institution can move: a mean of clipped updates, and no more."""
        if self.clip_norm is None:
            if self.noise_multiplier or self.target_quantile:
                raise ValueError("`noise_multiplier` and `target_quantile` need `clip_norm`")
            return self
        if self.robust != "none":
            raise ValueError(
                f"`clip_norm` cannot go with `robust`: {self.robust} is not a mean of clipped "
                "updates, and how far one institution moves it is not bounded by `clip_norm`"
            )
        if self.keeps_factors:
            raise ValueError(
                f"`clip_norm` cannot go with {self.method}, which takes the products of updates as "
                "they came: clipping and noise would not reach them; take another `method`"
            )
        return self

    @property
    def trains_both(self) -> bool:
        """Whether sites train A and B in one round."""
        return self.keeps_factors or self.method == "fedavg"

    @property
    def keeps_factors(self) -> bool:
        """Whether the method needs all sites' A and B at once: a running mean would not do."""
        return self.method in ("flexlora", "fedex-lora", "flora", "hetlora")

    @property
    def adds_to_base(self) -> bool:
        """Whether what is learned is added to the frozen weights too, as a residual."""
        return self.method in ("fedex-lora", "flora")

    @property
    def takes_ranks(self) -> bool:
        """Whether institutions may have adapters of different ranks."""
        return self.method in ("flexlora", "flora", "hetlora")

    @property
    def bound(self) -> float:
        """`norm_bound`, or none at all."""
        return self.norm_bound or math.inf

    @property
    def updates_needed(self) -> int:
        """Updates without which the robust rule cannot bear so many bad sites."""
        match self.robust:
            case "none" | "norm-bounding":
                return 1
            case "krum" | "multi-krum":
                return 2 * self.bad_sites + 3
            case _:
                return 2 * self.bad_sites + 1


class Personalisation(Section):
    """`[personalisation]`: what is each site's own, and never leaves it."""

    method: Literal[
        "none", "private-head", "fedsa-lora", "ditto", "fine-tune", "interpolate"
    ] = Field(
        default="none",
        description="private-head keeps the head at the site and shares LoRA; fedsa-lora trains A "
        "and B and shares A alone; ditto trains a second adapter, pulled towards the shared one; "
        "fine-tune trains on from the shared adapter after the run; interpolate does too, and takes "
        "that, one trained alike from zero, or the mean of both, whichever does best on records held "
        "out. The second adapter of the last three is trained without noise: it must not leave the "
        "institution.",
    )
    share_head: bool = Field(
        default=False, description="Whether fedsa-lora shares the head beside A."
    )
    ditto_lambda: float | None = Field(
        default=None,
        gt=0,
        description="λ of ditto: how strongly the personal adapter is pulled towards the shared one.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=MAX_STEPS,
        description="Steps that fine-tune and interpolate take after the run.",
    )
    optimizer: OptimizerName | None = Field(
        default=None,
        description="Optimiser of the second adapter, of ditto, fine-tune and interpolate; by default "
        "`training.optimizer`.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Its learning rate; by default `training.learning_rate`, which under a server "
        "optimiser is seldom one to train by itself with.",
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        after_run = ("fine-tune", "interpolate")
        for key, methods in (("ditto_lambda", ("ditto",)), ("steps", after_run)):
            if (getattr(self, key) is not None) != (self.method in methods):
                raise ValueError(
                    f"`{key}` is for `method` {' and '.join(methods)}, and needed there"
                )
        for key in ("optimizer", "learning_rate"):
            if getattr(self, key) is not None and self.method not in ("ditto", *after_run):
                raise ValueError(
                    f"`{key}` is for `method` ditto, fine-tune and interpolate alone"
                )
        if self.share_head and self.method != "fedsa-lora":
            raise ValueError("`share_head` is for `method` fedsa-lora alone")
        return self

    @property
    def keeps_tensors(self) -> bool:
        """Whether sites keep tensors of the adapter: what is shared is no whole adapter then."""
        return self.method in ("private-head", "fedsa-lora")

    def training(self, of_site: Training) -> Training:
        """How the second adapter is trained: as the site trains, but for what is said here."""
        own = {"optimizer": self.optimizer, "learning_rate": self.learning_rate}
        return of_site.model_copy(update={k: v for k, v in own.items() if v is not None})

    def shares(self, tensor: str) -> bool:
        """Whether a tensor of the adapter is shared; any other is never sent, either way."""
        is_head = ".lora_" not in tensor
        match self.method:
            case "private-head":
                return not is_head
            case "fedsa-lora":
                return ".lora_A." in tensor or (is_head and self.share_head)
            case _:
                return True
