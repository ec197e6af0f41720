"""Joining a coordinator: one token, and from then on its CA and no other is trusted.

(1) The token is whole. (2) This site has not joined anyone yet. (3) The gateway's certificate
chain is looked at, and nothing is told to it: only a CA with the token's fingerprint will
do. (4) The certificates are valid now. (5) The site's keys are made, and kept. (6) Under TLS
verified by that CA the control plane is sent the secret, the public keys and the proof that
the signing key is held. (7) The answer names the institution that was invited, and its role.
(8) What was agreed is written down, `site.toml` last.

A join that broke off may be repeated with the same token: the keys are kept, and the
coordinator answers the same key again.
"""

import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, cast

import tomli_w
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpact.client.dial import look
from fedpact.client.home import ClientHome
from fedpact.client.tables import TranscriptRow, exclusive
from fedpact.common import certificates, identity, possession
from fedpact.common.errors import TrustError, UsageError, WireError
from fedpact.common.identity import Role, SigningKey, VerifyKey
from fedpact.common.invitation import Invitation, secret_sha256
from fedpact.common.private_files import write_private
from fedpact.common.signed_calls import dial
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.common.v1 import federation_pb2_grpc as rpc
from fedpact.common.version import fedpact_version

_SERVER_CERTIFICATE = "The coordinator's server certificate"
_NodeId = Annotated[str, Field(pattern=r"^[0-9]{0,20}$")]
_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SiteSettings(BaseModel):
    """`site.toml`: who we are and whom we joined.

    Attributes:
        institution: our name, as studies name us.
        sector: academia, industry or government.
        role: what we do: data-holder, researcher or auditor.
        coordinator: host:port of the gateway, which our daemon dials.
        service: host:port of the control plane.
        coordinator_key: the Ed25519 public key that the coordinator signs with, hexadecimal.
        node_id: our number at SuperLink, an unsigned 64-bit number; empty for a role without
            a site.
        ca_fingerprint: SHA-256 of the coordinator's CA certificate.
        joined_at: when.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    institution: str
    sector: str
    role: Role
    coordinator: str
    service: str
    coordinator_key: _Key
    node_id: _NodeId
    ca_fingerprint: str
    joined_at: datetime


@dataclass(frozen=True)
class JoinedSite:
    """All that an institution needs to dial its coordinator.

    Attributes:
        institution: our name, as studies name us.
        sector: academia, industry or government.
        role: what we do.
        address: host:port of the gateway.
        service: host:port of the control plane.
        ca: the coordinator's CA certificate, PEM.
        signing_key: what we sign with.
        coordinator_key: what the coordinator signs with.
        keys: the node's key pair; None for a role without a site.
        node_id: our number at SuperLink; 0 for a role without a site.
    """

    institution: str
    sector: str
    role: Role
    address: str
    service: str
    ca: bytes
    signing_key: SigningKey
    coordinator_key: VerifyKey
    keys: tuple[certificates.PrivateKey, certificates.PublicKey] | None
    node_id: int


def join(token: str, home: ClientHome) -> SiteSettings:
    """Join the coordinator that a token names.

    Raises:
        TrustError: the token is damaged, used or expired, or the server is not the one that
            the token names.
        UsageError: this site has joined a coordinator already.
        AddressError: the coordinator cannot be reached.
        WireError: the answer is not a coordinator's.
        StorageError: the folder cannot be written.
    """
    invitation = Invitation.decode(token)
    if home.site.exists():
        raise UsageError(
            f"This site has joined {read_settings(home).coordinator} already.",
            advice="Take another folder for another coordinator (FEDPACT_CLIENT_HOME).",
        )
    authority = _find_authority(invitation)
    home.create()
    keys = _make_keys(home, Role(invitation.role))
    answer = _ask(invitation, certificates.certificate_pem(authority), keys)
    settings = _agreed(invitation, answer)
    write_private(home.ca, certificates.certificate_pem(authority))
    _begin_transcript(home, settings)
    write_private(home.site, tomli_w.dumps(settings.model_dump()).encode())
    return settings


def _begin_transcript(home: ClientHome, settings: SiteSettings) -> None:
    """Write down that we joined, unless an earlier attempt did."""
    engine = home.open_database()
    store = home.transcript_of(settings.institution)
    with exclusive(engine, TranscriptRow.__tablename__) as session:
        if store.newest(session) is None:
            names = {"coordinator", "service", "coordinator_key", "ca_fingerprint", "role"}
            store.append(session, "joined", settings.model_dump(mode="json", include=names))
    engine.dispose()


def _agreed(invitation: Invitation, answer: pb.JoinResponse) -> SiteSettings:
    """What the answer to joining says, checked against the token."""
    if (answer.institution, answer.role) != (invitation.institution, invitation.role):
        raise TrustError(
            f"The coordinator answered for {answer.institution or 'nobody'} "
            f"({answer.role or 'no role'}), the token is for {invitation.institution} "
            f"({invitation.role}).",
            advice="Ask the coordinator for a new token.",
        )
    if bool(answer.node_id) != (answer.role == Role.DATA_HOLDER):
        raise WireError("The answer to joining is not a coordinator's: its node_id.")
    try:
        return SiteSettings(
            institution=answer.institution,
            sector=answer.sector,
            role=Role(answer.role),
            coordinator=invitation.address,
            service=invitation.service,
            coordinator_key=answer.coordinator_key.hex(),
            node_id=answer.node_id,
            ca_fingerprint=invitation.fingerprint,
            joined_at=datetime.now(UTC).replace(microsecond=0),
        )
    except ValidationError as error:
        raise WireError("The answer to joining is not a coordinator's.") from error


def load_site(home: ClientHome) -> JoinedSite:
    """What `join` left in a site's folder, checked.

    Raises:
        TrustError: this site has not joined anyone, or a key or certificate is missing,
            altered or expired.
    """
    settings = read_settings(home)
    authority = certificates.load_certificate(home.ca)
    if certificates.fingerprint(authority) != settings.ca_fingerprint:
        raise TrustError(f"{home.ca} is not the CA that this site joined.")
    certificates.check_validity(authority, "The coordinator's CA certificate")
    keys = None
    if settings.role is Role.DATA_HOLDER:
        key = certificates.load_private_key(home.private_key)
        keys = (key, key.public_key())
    return JoinedSite(
        institution=settings.institution,
        sector=settings.sector,
        role=settings.role,
        address=settings.coordinator,
        service=settings.service,
        ca=certificates.certificate_pem(authority),
        signing_key=identity.load_signing_key(home.signing_key),
        coordinator_key=identity.verify_key(bytes.fromhex(settings.coordinator_key)),
        keys=keys,
        node_id=int(settings.node_id or 0),
    )


def read_settings(home: ClientHome) -> SiteSettings:
    """What `site.toml` says.

    Raises:
        TrustError: this site has not joined anyone, or the file is damaged.
    """
    try:
        values = tomllib.loads(home.site.read_text(encoding="utf-8"))
        return SiteSettings.model_validate(values)
    except FileNotFoundError as error:
        raise TrustError(
            "This site has not joined a coordinator.", advice="`fedpact client join TOKEN`."
        ) from error
    except (OSError, ValueError) as error:
        raise TrustError(f"{home.site} cannot be read: {error}.") from error


def _find_authority(invitation: Invitation) -> x509.Certificate:
    """Find the CA that the token names in the chain that the server shows."""
    chain = look(invitation.address).chain
    authority = next(
        (c for c in chain if certificates.fingerprint(c) == invitation.fingerprint), None
    )
    if authority is None:
        raise TrustError(
            f"The server at {invitation.address} is not the coordinator that the token names: "
            "its CA has another fingerprint.",
            advice="Someone may be in between, or the coordinator was set up anew: ask it for "
            "a new token.",
        )
    certificates.check_validity(authority, "The coordinator's CA certificate")
    certificates.check_validity(
        chain[0], _SERVER_CERTIFICATE, advice="The coordinator must renew it."
    )
    certificates.check_issued_by(chain[0], authority, _SERVER_CERTIFICATE)
    return authority


@dataclass(frozen=True)
class _NewKeys:
    node: bytes
    signing: SigningKey


def _make_keys(home: ClientHome, role: Role) -> _NewKeys:
    """Make the keys that a role needs, unless an earlier attempt did."""
    if not home.signing_key.exists():
        write_private(home.signing_key, identity.private_pem(identity.new_signing_key()))
    signing = identity.load_signing_key(home.signing_key)
    if role is not Role.DATA_HOLDER:
        return _NewKeys(b"", signing)
    if not home.private_key.exists():
        write_private(home.private_key, certificates.private_pem(certificates.new_key()))
    key = certificates.load_private_key(home.private_key)
    public = certificates.public_pem(key.public_key())
    write_private(home.public_key, public)
    return _NewKeys(public, signing)


def _ask(invitation: Invitation, ca: bytes, keys: _NewKeys) -> pb.JoinResponse:
    """Send secret and public keys to the coordinator, and to nobody else."""
    binding = secret_sha256(invitation.secret).encode()
    request = pb.JoinRequest(
        secret=invitation.secret,
        node_key=keys.node,
        signing_key=identity.public_bytes(keys.signing),
        proof=possession.prove(keys.signing, keys.node, binding),
        version=fedpact_version(),
    )
    with dial(invitation.service, ca, None) as channel:
        stub = rpc.FederationStub(channel)  # type: ignore[no-untyped-call] # generated code
        return cast("pb.JoinResponse", stub.Join(request))
