"""The agreement: who signed which study, and what the study's own rule makes of it.

A decision is over the study's digest, so it is over every byte of the study: another study,
another signature. Each institution's newest decision counts. Whether the study may run is a
pure function of the study and of those decisions: coordinator, sites and auditors all come
to the same answer from the same signatures.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from fedpact.common import identity
from fedpact.common.errors import TrustError
from fedpact.common.identity import Role, SigningKey, VerifyKey
from fedpact.common.study import Study
from fedpact.common.study_words import Digest, Name, Text

Kind = Literal["approve", "refuse", "withdraw", "consent", "veto"]
State = Literal["proposed", "agreed", "active", "ended", "withdrawn"]
Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$", max_length=128)]
# Who may decide what: a data holder about its data, an auditor about the study.
KINDS: Mapping[Role, frozenset[Kind]] = {
    Role.DATA_HOLDER: frozenset({"approve", "refuse", "withdraw"}),
    Role.AUDITOR: frozenset({"consent", "veto"}),
    Role.RESEARCHER: frozenset(),
    Role.COORDINATOR: frozenset(),
}


class Decision(BaseModel):
    """What one institution decided about one study, signed.

    Attributes:
        study_digest: of the study, every byte of it.
        institution: who decides.
        kind: what.
        reason: why, in the institution's words.
        moment: when, in UTC.
        key: the institution's Ed25519 public key, in hexadecimal.
        signature: over everything else here, in hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study_digest: Digest
    institution: Name
    kind: Kind
    reason: Text = Field(default="", max_length=2000)
    moment: AwareDatetime
    key: Hex
    signature: Hex = ""

    @classmethod
    def make(
        cls,
        key: SigningKey,
        institution: str,
        study_digest: str,
        kind: Kind,
        reason: str = "",
        moment: datetime | None = None,
    ) -> Self:
        """Decide, and sign it; the moment is the present if not given."""
        unsigned = cls(
            study_digest=study_digest,
            institution=institution,
            kind=kind,
            reason=reason,
            moment=moment or datetime.now(UTC),
            key=identity.public_bytes(key).hex(),
        )
        signature = identity.sign(key, "decision", unsigned.content()).hex()
        return unsigned.model_copy(update={"signature": signature})

    def content(self) -> bytes:
        """The bytes that are signed: canonical JSON of everything but the signature."""
        fields = self.model_dump(mode="json", exclude={"signature"})
        return json.dumps(
            fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    def check(self, key: VerifyKey) -> None:
        """Check the signature against the key that is known to be the institution's.

        Raises:
            TrustError: it is of another key, or over something else.
        """
        known = identity.public_bytes(key).hex()
        signed = self.key == known and identity.is_signed(
            key, "decision", self.content(), bytes.fromhex(self.signature)
        )
        if not signed:
            raise TrustError(
                f"The decision of {self.institution} is not signed with its key.",
                advice="Its key may have been changed: it must decide again.",
            )


@dataclass(frozen=True)
class Standing:
    """How a study stands.

    Attributes:
        state: proposed, agreed, active, ended or withdrawn.
        signed: data holders whose newest decision is to approve.
        missing: what the study's rule still wants, in words; empty once it is met.
    """

    state: State
    signed: frozenset[str]
    missing: tuple[str, ...]

    @property
    def may_run(self) -> bool:
        """Whether rounds may be run."""
        return self.state in {"agreed", "active"}


def newest(decisions: Iterable[Decision]) -> dict[str, Decision]:
    """Each institution's newest decision; of two in the same moment, the later in order."""
    latest: dict[str, Decision] = {}
    for decision in decisions:
        before = latest.get(decision.institution)
        if before is None or decision.moment >= before.moment:
            latest[decision.institution] = decision
    return latest


def standing(
    study: Study,
    decisions: Iterable[Decision],
    auditors: frozenset[str] = frozenset(),
    *,
    started: bool = False,
    ended: bool = False,
    recalled: bool = False,
    now: datetime | None = None,
) -> Standing:
    """What the study's governance rule makes of the decisions.

    Args:
        study: the study.
        decisions: of anyone, in the order in which they came, signatures checked.
        auditors: the federation's auditors.
        started: whether a run of it was ever started.
        ended: whether the coordinator ended it.
        recalled: whether its proposer took it back.
        now: the moment; the present if not given.
    """
    latest = newest(d for d in decisions if d.study_digest == study.digest)
    holders = {institution.name for institution in study.institutions}
    signed = frozenset(n for n in holders if n in latest and latest[n].kind == "approve")
    consents = {n for n in auditors if n in latest and latest[n].kind == "consent"}
    vetoes = sorted(n for n in auditors if n in latest and latest[n].kind == "veto")
    missing = _missing(study, signed, bool(consents), vetoes)
    today = (now or datetime.now(UTC)).date()
    over = study.governance.until is not None and today > study.governance.until
    if recalled or vetoes or (started and missing and not ended):
        state: State = "withdrawn"
    elif ended or over:
        state = "ended"
    elif missing:
        state = "proposed"
    else:
        state = "active" if started else "agreed"
    return Standing(state, signed, missing)


def _missing(
    study: Study, signed: frozenset[str], consented: bool, vetoes: list[str]
) -> tuple[str, ...]:
    rule = study.governance
    missing: list[str] = []
    waiting = sorted({i.name for i in study.institutions} - signed)
    if rule.data_holders is None:
        missing.extend(f"the signature of {name}" for name in waiting)
    elif len(signed) < rule.data_holders:
        missing.append(f"{rule.data_holders - len(signed)} more of {', '.join(waiting)}")
    for sector in sorted({institution.sector for institution in study.institutions}):
        have = sum(i.sector == sector and i.name in signed for i in study.institutions)
        if have < rule.per_sector:
            missing.append(f"{rule.per_sector - have} more signatures from {sector}")
    if rule.auditor_consent and not consented:
        missing.append("an auditor's consent")
    missing.extend(f"{name} to take back its veto" for name in vetoes)
    return tuple(missing)
