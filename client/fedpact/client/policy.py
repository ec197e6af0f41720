"""What an institution allows: its own `policy.toml`, read at the site and nowhere else.

No message can weaken it, and every rule fails closed: without a file the defaults hold, and
a key that is not known is an error, since it may be a rule that was mistyped. `check` is
pure. Its reasons go to the coordinator, so they name the rule and never a number that only
the site knows. What is wrong with the file itself stays at home.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpact.common.errors import PolicyError
from fedpact.common.study import Digest, Study

_NOT_VALID = "The site's policy cannot be used; the site's own log says why."
_TEMPLATE = Path(__file__).parent / "policy_template.toml"


class Policy(BaseModel):
    """The rules of one institution."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tasks: tuple[str, ...] = Field(
        default=("text-classification",), description="Tasks that a study may have."
    )
    models: tuple[Digest, ...] = Field(
        default=(),
        description="SHA-256 of the base models that may be used; none: any.",
    )
    require_model_sha256: bool = Field(
        default=True, description="Whether a study must name its base model's SHA-256."
    )
    require_dp: bool = Field(default=True, description="Whether updates must be made private.")
    max_epsilon: float = Field(
        default=10.0, gt=0, description="ε that a data set may spend over its lifetime."
    )
    max_delta: float = Field(
        default=1e-4, gt=0, lt=1, description="The largest δ that a study may have."
    )
    minimum_records: int = Field(
        default=100, ge=1, description="The smallest data set that may be used."
    )
    allow_site_metrics: bool = Field(
        default=False,
        description="Whether loss and accuracy on the site's own records may leave. NOT PRIVATE.",
    )
    studies: Literal["any"] | tuple[Digest, ...] = Field(
        default="any", description='Digests of the studies that may run, or "any".'
    )


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


def check(policy: Policy, study: Study, institution_name: str, records: int) -> None:
    """Whether the institution allows a study with a data set of `records` records.

    Raises:
        PolicyError: it does not; the message is the first rule that the study breaks.
        StudyError: the institution does not take part in the study.
    """
    study.institution(institution_name)
    if policy.studies != "any" and study.digest not in policy.studies:
        raise PolicyError(f"The study {study.digest[:12]} is not among those allowed here.")
    if study.task.name not in policy.tasks:
        raise PolicyError(f"The task {study.task.name} is not allowed here.")
    _check_model(policy, study)
    _check_privacy(policy, study)
    if study.evaluation.site_metrics and not policy.allow_site_metrics:
        raise PolicyError(
            "The study asks for metrics on the site's own records, which are not private and "
            "not allowed here."
        )
    if records < policy.minimum_records:
        raise PolicyError(
            f"The data set has fewer than the {policy.minimum_records} records that are asked "
            "for here."
        )


def _check_model(policy: Policy, study: Study) -> None:
    sha256 = study.model.sha256
    if sha256 is None and (policy.require_model_sha256 or policy.models):
        raise PolicyError("The study does not name the SHA-256 of its base model, as it must.")
    if policy.models and sha256 not in policy.models:
        raise PolicyError(f"The base model {study.model.base} is not among those allowed here.")


def _check_privacy(policy: Policy, study: Study) -> None:
    if not study.is_private:
        if policy.require_dp:
            raise PolicyError("The study has no differential privacy, which is required here.")
        return
    if study.privacy.target_delta > policy.max_delta:
        raise PolicyError(
            f"The study's δ = {study.privacy.target_delta:.3g} is above the "
            f"{policy.max_delta:.3g} that is allowed here."
        )
    if study.privacy.target_epsilon > policy.max_epsilon:
        raise PolicyError(
            f"The study's ε = {study.privacy.target_epsilon:.4g} is above the "
            f"{policy.max_epsilon:.4g} that is allowed here."
        )


def _problem(found: dict[str, Any]) -> str:
    key = str(found["loc"][0]) if found["loc"] else ""
    if found["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, Policy.model_fields, n=1, cutoff=0.5)
        known = (
            f"did you mean {close[0]}?" if close else f"known are {list(Policy.model_fields)}"
        )
        return f"there is no rule {key} ({known})"
    return f"{key}: {found['msg']}"
