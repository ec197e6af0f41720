"""What an audit at a site found, as its institution signs it, for a released model's card.

Only what follows from the attacked update may be released: it is differentially private, and paid
for. How well members are found by their loss is computed on the records themselves and is not.
"""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpact.common import identity
from fedpact.common.errors import TrustError, WireError
from fedpact.common.identity import SigningKey, VerifyKey
from fedpact.common.study_words import Digest
from fedpact.common.transcript import canonical, parse_canonical

_Epsilon = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]


class Verdict(BaseModel):
    """What an audit found.

    Attributes:
        study_digest: the study whose training was attacked.
        institution: at whose site.
        on: the day.
        software: the version of fedpact that trained.
        claimed_epsilon: what the ledger counts for what ran, at `delta`.
        unit: whom ε is for, as `Study.unit` has it; neighbours differ by one of these.
        lower_bound: ε is above it, with this confidence.
        correct: how many of the guesses on canaries were right.
        contradicted: whether the bound is above the claim.
        releasable: whether the ledger holds what it costs to show this to others.
        membership_auc: of the attack by loss (0.5 is chance). NOT PRIVATE: only in a verdict that
            stays in the house.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    study_digest: Digest
    institution: Annotated[str, Field(min_length=1, max_length=120)]
    on: date
    software: Annotated[str, Field(max_length=60)]
    claimed_epsilon: _Epsilon
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Annotated[str, Field(max_length=600)]
    neighbours: Literal["add or remove one"] = "add or remove one"
    lower_bound: _Epsilon
    confidence: Annotated[float, Field(gt=0, lt=1)]
    canaries: _Count
    guesses: _Count
    correct: _Count
    contradicted: bool
    releasable: bool
    membership_auc: Annotated[float, Field(ge=0, le=1)] | None = None

    def signed(self, key: SigningKey) -> str:
        """The verdict's file: canonical JSON with the institution's signature."""
        content = self.model_dump(mode="json")
        signature = identity.sign(key, "verdict", canonical(content).encode())
        return canonical({"signature": signature.hex(), "verdict": content}) + "\n"

    @classmethod
    def read(cls, text: str, key: VerifyKey) -> Self:
        """Read a verdict's file.

        Raises:
            WireError: it is none.
            TrustError: the key has not signed it.
        """
        verdict, signature = cls._parsed(text)
        content = canonical(verdict.model_dump(mode="json")).encode()
        if not identity.is_signed(key, "verdict", content, signature):
            raise TrustError(
                f"The verdict is not signed with the key of {verdict.institution}."
            )
        return verdict

    @classmethod
    def author(cls, text: str) -> str:
        """The institution that a verdict's file names; nothing is verified.

        Raises:
            WireError: it is none.
        """
        return cls._parsed(text)[0].institution

    @classmethod
    def _parsed(cls, text: str) -> tuple[Self, bytes]:
        try:
            document = parse_canonical(text.removesuffix("\n"))
            return cls.model_validate(document["verdict"]), bytes.fromhex(document["signature"])
        except (ValidationError, ValueError, TypeError, KeyError) as error:
            raise WireError("The file does not hold a verdict.") from error
