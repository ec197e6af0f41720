"""A site's signed statement of what the studies of this federation have cost its data sets.

It holds what follows from public numbers alone: noise, sampling rate, steps. No name of a data
set, no size, nothing of studies that another coordinator runs on the same data.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fedpact.common import identity
from fedpact.common.errors import TrustError, WireError
from fedpact.common.identity import SigningKey
from fedpact.common.study_words import Digest, Name
from fedpact.common.transcript import canonical, parse_canonical

if TYPE_CHECKING:
    from rich.table import Table

Count = Annotated[int, Field(ge=0)]


class StudySpending(BaseModel):
    """What one study has cost, all its runs together.

    Attributes:
        study_digest: the study.
        rounds: reserved, in all runs.
        unsettled: of these, rounds that count in full because they never ended.
        epsilon: at `delta`; None: the study has no DP.
        delta: of the promise.
        unit: whom ε protects: adding or removing one of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    study_digest: Digest
    rounds: Count
    unsettled: Count
    epsilon: Annotated[float, Field(ge=0)] | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Annotated[str, Field(max_length=600)]


class Spending(BaseModel):
    """What an institution states.

    Attributes:
        institution: whose ledger it is.
        moment: when it was read.
        studies: by digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    institution: Name
    moment: AwareDatetime
    studies: tuple[StudySpending, ...]

    def text(self) -> str:
        """Canonical JSON: what is signed, and what travels."""
        return canonical(self.model_dump(mode="json"))

    def sign(self, key: SigningKey) -> bytes:
        """The institution's signature."""
        return identity.sign(key, "statement", self.text().encode())

    @classmethod
    def read(cls, text: str, key: bytes, signature: bytes) -> Self:
        """Read a statement that another party sent.

        Args:
            text: as it travelled.
            key: the Ed25519 public key that must have signed it.
            signature: over exactly this text.

        Raises:
            WireError: it is not a statement in canonical form.
            TrustError: the key did not sign it.
        """
        if not identity.is_signed(
            identity.verify_key(key), "statement", text.encode(), signature
        ):
            raise TrustError("The statement is not signed with the institution's key.")
        try:
            return cls.model_validate(parse_canonical(text))
        except (ValidationError, ValueError) as error:
            raise WireError("This is not a statement of what was spent.") from error


def table(found: Sequence[Spending]) -> "Table":
    """Statements for people."""
    from rich.table import Column, Table

    shown = Table(
        "institution",
        Column("study", overflow="fold"),
        "rounds",
        "unsettled",
        "ε",
        "δ",
        "for adding or removing one",
        title="What studies have cost, as each institution has signed it",
    )
    for spending in found:
        for study in spending.studies:
            epsilon = "no DP" if study.epsilon is None else f"{study.epsilon:.4g}"
            shown.add_row(
                spending.institution,
                study.study_digest[:12],
                f"{study.rounds}",
                f"{study.unsettled}",
                epsilon,
                f"{study.delta:g}",
                study.unit,
            )
    return shown
