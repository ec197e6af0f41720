"""What an institution allows: its own `policy.toml`, read at the site and nowhere else.

No message can weaken it, and it fails closed: without a file the defaults hold, and a key
that is not known is an error, since it may be a rule that was mistyped. What is wrong with
the file itself stays at home. What a study must fit of it is in `policy_check`.
"""

import difflib
import tomllib
from datetime import time
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedpact.common.errors import PolicyError
from fedpact.common.study_parties import Sector
from fedpact.common.study_words import Digest, Name, Use

_NOT_VALID = "The site's policy cannot be used; the site's own log says why."
_TEMPLATE = Path(__file__).parent / "policy_template.toml"
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"


class Policy(BaseModel):
    """The rules of one institution."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    approval: Literal["person", "automatic"] = Field(
        default="person",
        description="Who agrees to a study that these rules allow: a person, or the site itself.",
    )
    tasks: tuple[str, ...] = Field(
        default=("text-classification",), description="Tasks that a study may have."
    )
    uses: tuple[Use, ...] = Field(
        default=(
            "research",
            "public-health",
            "safety-monitoring",
            "quality-improvement",
            "product",
        ),
        description="Kinds of use that a study may be for; empty: none.",
    )
    sectors: tuple[Sector, ...] = Field(
        default=(Sector.ACADEMIA, Sector.INDUSTRY, Sector.GOVERNMENT),
        description="Sectors that the other institutions of a study may be of.",
    )
    institutions: Literal["any"] | tuple[Name, ...] = Field(
        default="any",
        description='The other institutions that may take part in a study, by name, or "any".',
    )
    allow_outside_recipients: bool = Field(
        default=False,
        description="Whether a study may give its release to others than those who take part.",
    )
    models: tuple[Digest, ...] = Field(
        default=(),
        description="SHA-256 of the base models that may be used; none: any.",
    )
    allow_model_folders: bool = Field(
        default=False,
        description="Whether a study may name a folder of the site's disk as base model, whatever "
        "is in it; where `models` has its SHA-256, it always may.",
    )
    require_model_sha256: bool = Field(
        default=True, description="Whether a study must name its base model's SHA-256."
    )
    require_dp: bool = Field(default=True, description="Whether updates must be made private.")
    required_unit: Literal["any", "person"] = Field(
        default="any",
        description="Whom a study must promise to: persons, with all their records; or any: also single "
        "records.",
    )
    max_epsilon: float = Field(
        default=10.0, gt=0, description="ε that a data set may spend over its lifetime."
    )
    max_epsilon_per_study: float | None = Field(
        default=None,
        gt=0,
        description="ε that one study may cost a data set, all its runs together; without it, "
        "`max_epsilon`.",
    )
    max_delta: float = Field(
        default=1e-4, gt=0, lt=1, description="The largest δ that a study may have."
    )
    minimum_records: int = Field(
        default=100, ge=1, description="The smallest data set that may be used."
    )
    allow_site_metrics: bool = Field(
        default=False,
        description="Whether raw loss and accuracy on the site's own records may leave. NOT "
        "PRIVATE.",
    )
    studies: Literal["any"] | tuple[Digest, ...] = Field(
        default="any", description='Digests of the studies that may run, or "any".'
    )
    release: Literal["automatic", "ask"] = Field(
        default="automatic",
        description="Who lets an update leave that the gate has checked: the site itself, or, with "
        "ask, a person, each one.",
    )
    release_wait_minutes: float = Field(
        default=60.0,
        ge=0,
        le=100_000,
        description="With `release` ask: how long a site waits for that person before it tells "
        "the coordinator so; at most the study's `deadline_seconds`.",
    )
    allow_insecure_seed: bool = Field(
        default=False,
        description="Whether training may draw its noise from the seed in FEDPACT_INSECURE_SEED, for "
        "tests with invented records. NOT PRIVATE: who knows the seed takes the noise away.",
    )
    quiet_hours: str | None = Field(
        default=None,
        pattern=rf"^{_CLOCK}-{_CLOCK}$",
        description="Hours of the site's own clock in which no round begins to train, as "
        '"22:00-06:00".',
    )
    cpu_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads that training may use; without it, PyTorch's own choice. Holds "
        "from the daemon's next start.",
    )
    gpu_memory_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the GPU's memory that training may take, where there is a GPU. "
        "Holds from the daemon's next start.",
    )

    @model_validator(mode="after")
    def _hours_are_hours(self) -> Self:
        if self.quiet_hours is not None and len(set(self.quiet_hours.split("-"))) == 1:
            raise ValueError("`quiet_hours` end when they begin")
        return self

    @property
    def study_cap(self) -> float:
        """ε that one study may cost a data set."""
        return min(self.max_epsilon_per_study or self.max_epsilon, self.max_epsilon)

    @property
    def most(self) -> str:
        """ε that a data set may cost, in words."""
        return (
            f"ε = {self.max_epsilon:g} in its lifetime, at δ of at most {self.max_delta:g}, for "
            "adding or removing one record (or person)"
        )

    @property
    def quiet(self) -> tuple[time, time] | None:
        """When the quiet hours begin and end, on the site's own clock; they may span midnight."""
        if self.quiet_hours is None:
            return None
        start, _, end = self.quiet_hours.partition("-")
        return time.fromisoformat(start), time.fromisoformat(end)


def load(path: Path) -> Policy:
    """Read a policy file; without one, the defaults.

    Raises:
        PolicyError: the file cannot be read, or a rule in it is not valid.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Policy()
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(
            f"The policy {path} is not TOML: {error}.", told=_NOT_VALID
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"The policy {path} cannot be read: {error}.", told=_NOT_VALID
        ) from error
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        listing = "; ".join(_problem(dict(found)) for found in error.errors())
        raise PolicyError(
            f"The policy {path} is not valid: {listing}.",
            advice="Nothing runs until it is.",
            told=_NOT_VALID,
        ) from error


def template() -> str:
    """A policy file to start from: every rule at its default, with what it means."""
    return _TEMPLATE.read_text(encoding="utf-8")


def _problem(found: dict[str, Any]) -> str:
    key = str(found["loc"][0]) if found["loc"] else ""
    if found["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, Policy.model_fields, n=1, cutoff=0.5)
        known = (
            f"did you mean {close[0]}?" if close else f"known are {list(Policy.model_fields)}"
        )
        return f"there is no rule {key} ({known})"
    why = str(found["msg"]).removeprefix("Value error, ")
    return f"{key}: {why}" if key else why
