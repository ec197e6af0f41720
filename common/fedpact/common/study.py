"""The study: one purpose, one task, one base model, one budget, in one TOML file.

The same file drives a simulation and a federation. Field names are those of the libraries
they reach: `peft.LoraConfig` in `[adapter]`, Opacus in `[privacy]`,
`transformers.TrainingArguments` in `[training]`. The canonical JSON of a study has one
SHA-256, the *study digest*: that is what is agreed to, sent with every request and checked
by every site, so every field here is part of it and every default is written out in it.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from fedpact.common.errors import StudyError
from fedpact.common.task_section import Section, Task, Word, fill_head

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Names come from other parties and end in logs, terminals and databases: no control characters,
# line separators or reversed writing in them.
Name = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=120,
        strip_whitespace=True,
        pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069]+$",
    ),
]
# Line breaks and tabs are part of a longer text.
Text = Annotated[
    str,
    StringConstraints(
        max_length=10_000,
        pattern=r"^(?:[\n\t]|[^\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069])*$",
    ),
]
Use = Literal[
    "research", "public-health", "safety-monitoring", "quality-improvement", "product"
]
# Beyond it, a site would compose privacy losses for hours.
MAX_STEPS = 100_000


class Sector(StrEnum):
    """What kind of organisation an institution is."""

    ACADEMIA = "academia"
    INDUSTRY = "industry"
    GOVERNMENT = "government"


class About(Section):
    """`[study]`: what it is called and what it is for."""

    name: Name = Field(description="What the study is called.")
    purpose: Text = Field(
        default="", description="What the model is for, in words that a data steward can judge."
    )
    use: Use = Field(
        default="research",
        description="The kind of use that the purpose is, which sites' policies name.",
    )
    dataset: Name | None = Field(
        default=None,
        description="The name under which sites register the data set that is meant; without "
        "it, a site's only data set.",
    )


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
    optimizer: Literal["sgd", "adamw"] = Field(
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
        _stable(self, "training.proximal_mu", self.proximal_mu)
        return self


def _stable(training: Training, key: str, pull: float) -> None:
    """With SGD a pull takes a share of the way back: more than all of it overshoots."""
    if training.optimizer == "sgd" and pull * training.learning_rate > 1:
        raise ValueError(
            f"`{key}` times `training.learning_rate` is above 1: with sgd each step would go "
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
        default=1e-3, gt=0, description="τ of adam and yogi, added to the root of v."
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

    method: Literal["none", "private-head", "fedsa-lora", "ditto", "fine-tune"] = Field(
        default="none",
        description="private-head keeps the head at the site and shares LoRA; fedsa-lora trains A "
        "and B and shares A alone; ditto trains a second adapter, pulled towards the shared one; "
        "fine-tune trains on from the shared adapter after the run. The second adapter of the last "
        "two is trained without noise: it must not leave the institution.",
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
        description="Steps that fine-tune takes after the run.",
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        for key, method in (("ditto_lambda", "ditto"), ("steps", "fine-tune")):
            if (getattr(self, key) is not None) != (self.method == method):
                raise ValueError(f"`{key}` is for `method` {method}, which needs it")
        if self.share_head and self.method != "fedsa-lora":
            raise ValueError("`share_head` is for `method` fedsa-lora alone")
        return self

    @property
    def keeps_tensors(self) -> bool:
        """Whether sites keep tensors of the adapter: what is shared is no whole adapter then."""
        return self.method in ("private-head", "fedsa-lora")

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


class Federation(Section):
    """`[federation]`: whom a round waits for, and how long."""

    quorum: int = Field(
        default=1, ge=1, description="Updates without which a round does not count."
    )
    deadline_seconds: float = Field(
        default=600.0, gt=0, description="After this long a round goes on with what it has."
    )


class Evaluation(Section):
    """`[evaluation]`: how good the adapter is, without a leak."""

    data: Word | None = Field(
        default=None,
        description="A public test set, with the task's columns; a path next to the study file.",
    )
    sha256: Digest | None = Field(default=None, description="SHA-256 that this file must have.")
    every: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="After how many rounds each the coordinator measures the adapter on `data`; "
        "after the last one always.",
    )
    contributions: Literal["none", "leave-one-out"] = Field(
        default="none",
        description="What each site's update was worth in a round that is measured: leave-one-out "
        "measures on `data` what the round would have made without it too. One evaluation more "
        "for each site; the coordinator keeps all updates of the round.",
    )
    site_metrics: Literal["none", "private", "raw"] = Field(
        default="none",
        description="Loss and accuracy on sites' own data: none; private, with noise that the "
        "run's ε pays for; or raw. Raw is NOT PRIVATE, and a site's policy must allow it too.",
    )
    metrics_epsilon_share: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share of `target_epsilon` that private metrics cost in the whole run; "
        "training has the rest.",
    )
    per_class: bool = Field(
        default=False,
        description="Whether private metrics also count, for each label, right and wrong predictions. "
        "All of them then have √3 times the noise.",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="What a site sets aside where it reports metrics."
    )


class Governance(Section):
    """`[governance]`: whose signatures make the study active, until when, and for whom."""

    data_holders: int | None = Field(
        default=None,
        ge=1,
        description="How many of the institutions that take part must have signed; without "
        "it, all.",
    )
    per_sector: int = Field(
        default=0, ge=0, description="Signatures needed from each sector that takes part."
    )
    auditor_consent: bool = Field(
        default=False, description="Whether an auditor must have consented."
    )
    until: date | None = Field(
        default=None, description="The last day (UTC) on which rounds may be run."
    )
    recipients: tuple[Name, ...] = Field(
        default=(), description="Who may receive the release besides those who take part."
    )


class Institution(Section):
    """`[[institutions]]`: who takes part, and the size it declares in public."""

    name: Name = Field(description="The institution's name, as it was invited.")
    sector: Sector = Field(description="academia, industry or government.")
    records: int = Field(
        ge=1,
        le=1_000_000_000,
        description="The size of its data set, as agreed in public: it sets the sampling rate "
        "and the weight of its updates, so that no counted size need leave the site.",
    )
    persons: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="How many persons these records are of, as agreed in public; needed where "
        "`privacy.unit` is person, and then in the place of `records` for rate and weight.",
    )
    r: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="The LoRA rank that its hardware holds, where that is below `adapter.r`; the "
        "scale stays that of `adapter`.",
    )


class Study(Section):
    """A whole study file."""

    study: About
    task: Task
    model: BaseModelRef
    adapter: Adapter = Adapter()
    training: Training = Training()
    privacy: Privacy = Privacy()
    aggregation: Aggregation = Aggregation()
    personalisation: Personalisation = Personalisation()
    federation: Federation = Federation()
    evaluation: Evaluation = Evaluation()
    governance: Governance = Governance()
    institutions: tuple[Institution, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _has_a_head(cls, document: Any) -> Any:
        return fill_head(document)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.total_steps > MAX_STEPS:
            raise ValueError(f"`rounds` times `local_steps` is above {MAX_STEPS:,}")
        if 2 * self.task.window_overlap >= self.training.max_length:
            raise ValueError(
                "`task.window_overlap` must be below half of `training.max_length`"
            )
        names = [institution.name for institution in self.institutions]
        if len(set(names)) != len(names):
            raise ValueError("an institution stands in `institutions` twice")
        if names and self.federation.quorum > len(names):
            raise ValueError(
                f"`federation.quorum` is {self.federation.quorum} but only {len(names)} "
                "institutions take part"
            )
        needed = self.aggregation.updates_needed
        if self.federation.quorum < needed:
            raise ValueError(
                f"`aggregation.robust` {self.aggregation.robust} needs {needed} updates in every "
                f"round to bear {self.aggregation.bad_sites} bad sites, but `federation.quorum` "
                f"is {self.federation.quorum}"
            )
        wanted = self.governance.data_holders
        if names and wanted is not None and wanted > len(names):
            raise ValueError(
                f"`governance.data_holders` is {wanted} but only {len(names)} institutions "
                "take part"
            )
        self._has_ranks_that_meet()
        self._has_the_head_of_its_task()
        self._has_one_unit()
        self._pays_for_metrics()
        self._can_be_personal()
        self._can_leave_one_out()
        for institution in self.institutions:
            size = self.size(institution)
            if self.is_private and self.privacy.target_delta > 1 / size:
                raise ValueError(
                    f"`privacy.target_delta` is above 1/{size}, one over the "
                    f"{self.privacy.unit}s of {institution.name}: such a promise is empty; take "
                    "a smaller δ"
                )
        return self

    def _has_the_head_of_its_task(self) -> None:
        kind, name = self.task.kind, self.task.name
        if not kind.head and self.adapter.modules_to_save:
            raise ValueError(
                f"`adapter.modules_to_save` must be empty for {name}: the head is tied "
                "to the embeddings, and neither is trained"
            )
        if not kind.pooled and self.model.pooling != "auto":
            raise ValueError(
                f"`model.pooling` does nothing for {name}, whose head sees no single vector of a "
                "text: leave it out"
            )

    def _pays_for_metrics(self) -> None:
        """Private metrics have an ε to be paid from, and count only what a task has."""
        if self.evaluation.per_class and self.evaluation.site_metrics != "private":
            raise ValueError(
                '`evaluation.per_class` needs `evaluation.site_metrics = "private"`'
            )
        if self.evaluation.per_class and not self.task.kind.one_label:
            raise ValueError(
                "`evaluation.per_class` counts by label, and a record of "
                f"{self.task.name} has not just one"
            )
        if self.evaluation.site_metrics == "private" and not self.is_private:
            raise ValueError(
                '`evaluation.site_metrics` is "private" but `privacy.mechanism` is "none": '
                "there is no ε to pay for them with"
            )

    def _has_ranks_that_meet(self) -> None:
        for one in self.institutions:
            if one.r is None:
                continue
            if one.r > self.adapter.r:
                raise ValueError(
                    f"{one.name} has rank {one.r}, but `adapter.r`, the highest, is "
                    f"{self.adapter.r}"
                )
            if one.r < self.adapter.r and not self.aggregation.takes_ranks:
                raise ValueError(
                    f"{one.name} has rank {one.r} and `adapter.r` is {self.adapter.r}, but "
                    f"{self.aggregation.method} needs the same rank at all institutions; take flora, "
                    "flexlora or hetlora"
                )

    def _has_one_unit(self) -> None:
        """Everything that a promise to persons needs is there, and nothing of it without."""
        needed = {
            "task.person_column": self.task.person_column,
            "privacy.max_records_per_person": self.privacy.max_records_per_person,
            **{f"persons of {one.name}": one.persons for one in self.institutions},
        }
        if self.privacy.unit == "record":
            # Sizes may be known; what would be read or do nothing may not stand there.
            for key in ("task.person_column", "privacy.max_records_per_person"):
                if needed[key] is not None:
                    raise ValueError(f'`{key}` is for `privacy.unit = "person"` alone')
            return
        if not self.is_private:
            raise ValueError('`privacy.unit = "person"` needs a mechanism other than none')
        for key, value in needed.items():
            if value is None:
                raise ValueError(f'`privacy.unit = "person"` needs `{key}`')
        for one in self.institutions:
            if one.persons is not None and one.persons > one.records:
                raise ValueError(f"{one.name} has more persons than records")

    def _can_be_personal(self) -> None:
        """Something is shared, something is kept, and what is kept can be trained."""
        personal, method = self.personalisation, self.personalisation.method
        unlike = any(one.r not in (None, self.adapter.r) for one in self.institutions)
        if method != "none" and (self.aggregation.adds_to_base or unlike):
            raise ValueError(
                f"`personalisation.method` {method} cannot go with frozen weights that change or with "
                "unlike ranks: what a site has kept would be of other weights or another shape"
            )
        if personal.ditto_lambda is not None:
            _stable(self.training, "personalisation.ditto_lambda", personal.ditto_lambda)
        if method == "ditto" and self.aggregation.method not in (
            "ffa-lora",
            "rolora",
            "fedavg",
        ):
            raise ValueError(
                f"`personalisation.method` ditto cannot go with {self.aggregation.method}, which "
                "changes the basis of A and B after each round: the personal adapter would be "
                "pulled towards factors of another basis; take ffa-lora, rolora or fedavg"
            )
        if method == "private-head" and not self.adapter.modules_to_save:
            raise ValueError(
                "`personalisation.method` private-head needs a head: `adapter.modules_to_save`"
            )
        if method == "fedsa-lora" and self.aggregation.method != "fedavg":
            raise ValueError(
                "`personalisation.method` fedsa-lora trains A and B and averages A: it needs "
                f"`aggregation.method` fedavg, not {self.aggregation.method}"
            )

    def _can_leave_one_out(self) -> None:
        """A round without one of its sites can be made, measured and told."""
        if self.evaluation.contributions == "none":
            return
        key = f'`evaluation.contributions = "{self.evaluation.contributions}"`'
        if self.evaluation.data is None:
            raise ValueError(f"{key} needs a public test set: `evaluation.data`")
        if self.personalisation.keeps_tensors:
            raise ValueError(
                f"{key} cannot go with `personalisation.method` {self.personalisation.method}: what "
                "is shared cannot predict by itself, so that it is not measured"
            )
        if self.aggregation.noise_multiplier:
            raise ValueError(
                f"{key} cannot go with `aggregation.noise_multiplier`: what is said of single "
                "institutions would have none of the noise that is to protect them"
            )
        needed = self.aggregation.updates_needed + 1
        if self.institutions and len(self.institutions) < needed:
            raise ValueError(
                f"{key} needs at least {needed} institutions: without one of fewer, too few are left"
            )

    @property
    def is_private(self) -> bool:
        """Whether updates are made private by DP-SGD."""
        return self.privacy.mechanism == "dp-sgd"

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: what is agreed to."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Canonical JSON: every field, keys sorted, no white space (after RFC 8785)."""
        return json.dumps(
            self.model_dump(mode="json"),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )

    @classmethod
    def from_canonical(cls, text: str) -> Self:
        """Read a study from JSON that another party sent.

        Raises:
            StudyError: the text is not the canonical JSON of a study.
        """
        try:
            study = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise StudyError(
                f"The study received is not a valid one: {place[:200]}: {first['msg'][:500]}."
            ) from error
        if study.canonical() != text:
            raise StudyError("The study received is not in canonical form.")
        return study

    def institution(self, name: str) -> Institution:
        """The institution called `name`.

        Raises:
            StudyError: no such institution takes part.
        """
        for institution in self.institutions:
            if institution.name == name:
                return institution
        raise StudyError(
            f"{name} does not take part in the study {self.study.name}.",
            advice="Its [[institutions]] must name it exactly.",
        )

    @property
    def unit(self) -> str:
        """Whom the promise covers, in words: stands wherever an ε does."""
        if self.privacy.unit == "record":
            return "record"
        return f"person ({self.task.person_column})"

    def size(self, institution: Institution) -> int:
        """What an institution declares to have of the promise's unit: records or persons."""
        if self.privacy.unit == "person" and institution.persons is not None:
            return institution.persons
        return institution.records

    def rank(self, name: str) -> int:
        """The LoRA rank of an institution's adapter."""
        return self.institution(name).r or self.adapter.r

    def expected_batch_size(self, name: str) -> int:
        """Records (or persons) expected in a logical batch: at most all that are declared."""
        return min(self.training.batch_size, self.size(self.institution(name)))

    def sample_rate(self, name: str) -> float:
        """Poisson sampling rate at an institution: expected batch over its declared size."""
        return self.expected_batch_size(name) / self.size(self.institution(name))

    def expected_validation(self, name: str) -> float:
        """Records (or persons) expected in a validation split, from the declared size."""
        return self.size(self.institution(name)) * self.evaluation.validation_fraction

    @property
    def classes_measured(self) -> int:
        """For how many labels private metrics count; 0: for none."""
        return len(self.task.labels) if self.evaluation.per_class else 0

    @property
    def loss_clip(self) -> float:
        """Where a record's loss is clipped in private metrics: twice the loss of a guess."""
        return 2 * self.task.kind.guess_loss(self.task)

    def trains(self, tensor: str, number: int) -> bool:
        """Whether sites train a tensor of the adapter in a round (from 1).

        Under FFA-LoRA and FedSVD, A is frozen and shared; under RoLoRA, B and A take turns. What was
        added to the frozen weights is frozen as they are.
        """
        if ".residual_" in tensor:
            return False
        match self.aggregation.method:
            case "ffa-lora" | "fedsvd":
                return ".lora_A." not in tensor
            case "rolora":
                return (".lora_A." if number % 2 else ".lora_B.") not in tensor
            case "fedavg" | "flexlora" | "fedex-lora" | "flora" | "hetlora":
                return True

    def shared(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the adapter's tensors that are sent, either way; sites keep the others."""
        return tuple(name for name in names if self.personalisation.shares(name))

    @property
    def total_steps(self) -> int:
        """Optimiser steps that each site takes in the whole run."""
        return self.training.rounds * self.training.local_steps

    def with_institutions(self, institutions: tuple[Institution, ...]) -> Self:
        """The same study among other institutions, checked again.

        Raises:
            StudyError: the study does not allow them.
        """
        document = {**self.model_dump(), "institutions": [i.model_dump() for i in institutions]}
        try:
            return type(self).model_validate(document)
        except ValidationError as error:
            why = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
            raise StudyError(f"The study does not allow these institutions: {why}.") from error

    def promising(self, epsilon: float) -> Self:
        """The same study with another ε, checked again.

        Raises:
            StudyError: that is not an ε.
        """
        document = self.model_dump()
        document["privacy"]["target_epsilon"] = epsilon
        try:
            return type(self).model_validate(document)
        except ValidationError as error:
            raise StudyError(f"A study cannot promise ε = {epsilon}.") from error


def load(path: Path) -> Study:
    """Read a study file.

    Raises:
        StudyError: the file cannot be read, or is not a valid study; the message names
            everything that is wrong with it, each with its line.
    """
    from fedpact.common import study_check

    document, problems = study_check.read(path)
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise StudyError(f"{path} is not a valid study:\n{listing}")
    return Study.model_validate(document)
