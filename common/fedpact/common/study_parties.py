"""What a study says of itself and of those who take part: purpose, rounds, tests, signatures, sizes."""

from datetime import date
from enum import StrEnum
from typing import Literal

from pydantic import Field

from fedpact.common.study_words import Digest, Name, Text, Use
from fedpact.common.task_section import Section, Word


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
