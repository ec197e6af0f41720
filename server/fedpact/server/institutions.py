"""Institutions: who was invited, who joined with which key, who was shown the door.

An invitation is used once: it binds the first keys that come with its secret. The same keys
with the same secret get the same answer again, so that a site whose connection broke while it
joined can repeat itself; any others are refused.

A data holder has two keys: its node's, with which its daemon comes through the gateway, and
the one that it signs with. Researchers and auditors have no node.

Functions that change something leave the commit to the caller, where it is a visible line.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Engine, and_, select, update
from sqlalchemy.orm import Session

from fedpact.common.errors import TrustError, UsageError, WireError
from fedpact.common.identity import Role
from fedpact.common.invitation import Invitation, new_secret, secret_sha256
from fedpact.common.study_parties import Sector
from fedpact.common.transcript_store import write
from fedpact.server.roles import COORDINATOR
from fedpact.server.tables import Institution

Register = Callable[[bytes], int]
_MAX_NAME = 120


@dataclass(frozen=True)
class Keys:
    """What an institution is known by.

    Attributes:
        node: its node's public key, PEM; empty for a role without a site.
        signing: its Ed25519 public key, 32 bytes.
    """

    node: bytes
    signing: bytes


def invite(
    session: Session,
    name: str,
    sector: Sector,
    *,
    role: Role = Role.DATA_HOLDER,
    address: str,
    service: str,
    fingerprint: str,
    valid_for: timedelta,
) -> str:
    """Invite an institution; one that has not joined yet gets a new token, the old one dies.

    Args:
        session: the caller commits.
        name: the institution, as studies will name it.
        sector: academia, industry or government.
        role: what it does in the federation.
        address: host:port of the gateway.
        service: host:port of the control plane.
        fingerprint: of the coordinator's CA.
        valid_for: how long the token can be used.

    Returns:
        the token, which is nowhere kept.

    Raises:
        UsageError: the name is empty, too long or the coordinator's, or the institution has
            joined already.
    """
    name = name.strip()
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise UsageError(f"An institution's name has 1 to {_MAX_NAME} printable characters.")
    if name.casefold() == COORDINATOR:
        raise UsageError(f"{name} is what the coordinator itself goes by.")
    row = session.scalar(select(Institution).where(Institution.name == name))
    if row is None:
        row = Institution(name=name)
        session.add(row)
    elif row.state == "joined":
        raise UsageError(
            f"{name} has joined already.",
            advice=f"To give it a new key, first `fedpact server revoke {name!r}`.",
        )
    secret = new_secret()
    now = datetime.now(UTC)
    row.sector, row.role = sector, role
    row.secret_sha256 = secret_sha256(secret)
    row.invited_at, row.expires_at = now, now + valid_for
    row.joined_at = row.revoked_at = row.node_id = None
    row.public_key = row.signing_key = None
    session.flush()
    write(session, "invited", {"institution": name, "sector": sector, "role": role})
    return Invitation(address, service, fingerprint, name, role, secret).encode()


def accept(session: Session, secret: str, keys: Keys, register: Register) -> Institution:
    """Let an institution in that has an invitation.

    Args:
        session: the caller commits.
        secret: what the invitation says.
        keys: the institution's.
        register: makes a node's key known to SuperLink and gives its node id; may be called again
            with the same key.

    Raises:
        TrustError: the invitation is unknown, expired, revoked, or used with other keys; or
            the signing key is another institution's.
        WireError: a node's key is missing, or there for a role without a site.
        AddressError: SuperLink is away (from `register`); the invitation stays unused.
    """
    row = session.scalar(
        select(Institution).where(Institution.secret_sha256 == secret_sha256(secret))
    )
    if row is None or row.state == "revoked":
        raise TrustError("This invitation is not valid, or was replaced by a newer one.")
    if row.state == "joined":
        if _keys_of(row) != keys:
            raise TrustError("This invitation has been used already.")
        return row
    now = datetime.now(UTC)
    if now > row.expires_at:
        raise TrustError(f"This invitation expired on {row.expires_at:%Y-%m-%d %H:%M} UTC.")
    _check_keys(session, row, keys)
    # Two that come at once: the second finds the row taken, because this statement waits for
    # the first one's commit.
    taken = session.execute(
        update(Institution)
        .where(Institution.id == row.id, Institution.joined_at.is_(None))
        .values(joined_at=now, public_key=keys.node or None, signing_key=keys.signing)
        .execution_options(synchronize_session=False)
        .returning(Institution.id)
    ).all()
    if not taken:
        raise TrustError("This invitation has been used already.")
    session.refresh(row)
    if keys.node:
        row.node_id = str(register(keys.node))
    session.flush()
    write(session, "joined", {"institution": row.name, "role": row.role, **_shown(keys)})
    return row


def _shown(keys: Keys) -> dict[str, str]:
    """Keys as the transcript has them: the signing key, the SHA-256 of the node's."""
    node = hashlib.sha256(keys.node).hexdigest() if keys.node else ""
    return {"signing_key": keys.signing.hex(), "node_key_sha256": node}


def _keys_of(row: Institution) -> Keys:
    return Keys(row.public_key or b"", row.signing_key or b"")


def _check_keys(session: Session, row: Institution, keys: Keys) -> None:
    if bool(keys.node) != (row.role == Role.DATA_HOLDER):
        raise WireError(
            f"A {row.role} has {'no node key' if keys.node else 'a node key, and it is missing'}."
        )
    taken = select(Institution.id).where(
        Institution.signing_key == keys.signing, Institution.id != row.id
    )
    if session.scalar(taken) is not None:
        raise TrustError("This signing key is another institution's.")


def rotate(
    session: Session, signing_key: bytes, keys: Keys, register: Register
) -> tuple[Institution, int | None]:
    """Change an institution's keys; the old ones count no more.

    Args:
        session: the caller commits.
        signing_key: the one that it has now, and that asks.
        keys: the new ones; those that it has already change nothing, so that an institution
            whose connection broke meanwhile can repeat itself.
        register: makes a node's key known to SuperLink and gives its node id.

    Returns:
        the institution, and the node that it had before, if it has another one now.

    Raises:
        TrustError: the key is nobody's who may come in, or the new one is another's.
        WireError: a node's key is missing, or there for a role without a site.
        AddressError: SuperLink is away (from `register`); nothing has changed.
    """
    row = session.scalar(
        select(Institution).where(Institution.signing_key == signing_key, _may_come_in())
    )
    if row is None:
        raise TrustError("This key is nobody's who may come in.")
    if _keys_of(row) == keys:
        return row, None
    _check_keys(session, row, keys)
    # Two that come at once: the second finds that the key, which asks, is the old one by now.
    changed = session.execute(
        update(Institution)
        .where(Institution.id == row.id, Institution.signing_key == signing_key)
        .values(public_key=keys.node or None, signing_key=keys.signing)
        .execution_options(synchronize_session=False)
        .returning(Institution.id)
    ).all()
    if not changed:
        raise TrustError("This key has been changed already.")
    before = row.node_id
    session.refresh(row)
    if keys.node:
        row.node_id = str(register(keys.node))
    session.flush()
    write(session, "rotated", {"institution": row.name, **_shown(keys)})
    return row, int(before) if before and before != row.node_id else None


def list_institutions(session: Session) -> list[Institution]:
    """Every institution that was ever invited, by name."""
    return list(session.scalars(select(Institution).order_by(Institution.name)))


def revoke(session: Session, name: str) -> int | None:
    """Withdraw an invitation, or shut an institution out: its keys are refused from now on.

    Returns:
        the node that it had, for SuperLink to forget.

    Raises:
        UsageError: no such institution was invited.
    """
    row = session.scalar(select(Institution).where(Institution.name == name))
    if row is None:
        raise UsageError(
            f"{name} was never invited.", advice="`fedpact server institutions` lists all."
        )
    if row.revoked_at is None:
        row.revoked_at = datetime.now(UTC)
        write(session, "revoked", {"institution": name})
    return int(row.node_id) if row.node_id else None


def joined_keys(session: Session) -> frozenset[bytes]:
    """Public keys of the sites that may come in."""
    return frozenset(
        key
        for key in session.scalars(select(Institution.public_key).where(_may_come_in()))
        if key is not None
    )


def node_ids(engine: Engine, names: Iterable[str]) -> dict[str, int]:
    """Name to Flower node id, of those among `names` that have joined and may come in."""
    wanted = set(names)
    with Session(engine) as session:
        rows = session.execute(
            select(Institution.name, Institution.node_id).where(_may_come_in())
        ).all()
    return {name: int(node) for name, node in rows if name in wanted and node is not None}


def register_missing(
    session: Session, known: Mapping[bytes, int], register: Register
) -> list[str]:
    """Make SuperLink know every site that has joined: its own database may have been lost.

    Args:
        session: the caller commits.
        known: public key to node id, as SuperLink has them.
        register: makes a key known to SuperLink and gives its node id.

    Returns:
        the institutions that SuperLink did not know.
    """
    missing = []
    for row in list_institutions(session):
        if row.state != "joined" or row.public_key is None:
            continue
        node = known.get(row.public_key)
        if node is None:
            node = register(row.public_key)
            missing.append(row.name)
        row.node_id = str(node)
    return missing


def _may_come_in() -> ColumnElement[bool]:
    return and_(Institution.joined_at.is_not(None), Institution.revoked_at.is_(None))
