"""The study: one purpose, one task, one base model, one budget, in one TOML file.

The same file drives a simulation and a federation. Field names are those of the libraries
they reach: `peft.LoraConfig` in `[adapter]`, Opacus in `[privacy]`,
`transformers.TrainingArguments` in `[training]`. The canonical JSON of a study has one
SHA-256, the *study digest*: that is what is agreed to, sent with every request and checked
by every site, so every field here is part of it and every default is written out in it.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from fedpact.common.errors import StudyError
from fedpact.common.study_learning import Adapter, BaseModelRef, Privacy, Training
from fedpact.common.study_parties import (
    About,
    Evaluation,
    Federation,
    Governance,
    Institution,
)
from fedpact.common.study_together import Aggregation, Personalisation
from fedpact.common.study_words import MAX_STEPS
from fedpact.common.task_section import Section, Task, fill_head


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
        if personal.keeps_tensors and self.adapter.start is not None:
            raise ValueError(
                f"`adapter.start` cannot go with `personalisation.method` {method}: what sites keep "
                "begins at the seed's values, without what the shared tensors were trained with"
            )
        unlike = any(one.r not in (None, self.adapter.r) for one in self.institutions)
        if method != "none" and (self.aggregation.adds_to_base or unlike):
            raise ValueError(
                f"`personalisation.method` {method} cannot go with frozen weights that change or with "
                "unlike ranks: what a site has kept would be of other weights or another shape"
            )
        if personal.ditto_lambda is not None:
            own = personal.training(self.training)
            own.require_stable("personalisation.ditto_lambda", personal.ditto_lambda)
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
        if method == "interpolate" and self.aggregation.method not in ("ffa-lora", "fedsvd"):
            raise ValueError(
                "`personalisation.method` interpolate takes the mean of two B, which is a mean of "
                f"their BA only where A is not trained: {self.aggregation.method} trains it; take "
                "ffa-lora or fedsvd"
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

    def personalised_by(self, method: str) -> Self:
        """The same study with another way to train a personal adapter after the run, checked again.

        Raises:
            StudyError: it trains none after the run, or not by this method.
        """
        document = self.model_dump()
        made = document["personalisation"]
        if self.personalisation.steps is None:
            raise StudyError(
                f"The study trains no personal adapter after the run: its method is {made['method']}."
            )
        made["method"] = method
        try:
            return type(self).model_validate(document)
        except ValidationError as error:
            raise StudyError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


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
