"""Joining a coordinator: one token, and from then on its CA and no other is trusted.

(1) The token is whole. (2) This site has not joined anyone yet. (3) The server's certificate
chain is looked at, and nothing is told to it: only a CA with the token's fingerprint will
do. (4) The certificates are valid now. (5) The site's keys are made, and kept. (6) Under TLS
verified by that CA the secret and the public key are sent. (7) The answer names the
institution that was invited. (8) What was agreed is written down, `site.toml` last.

A join that broke off may be repeated with the same token: the keys are kept, and the
coordinator answers the same key again.
"""

import ssl
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import tomli_w
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpact.client.home import ClientHome, write_private
from fedpact.common import certificates
from fedpact.common.errors import AddressError, TrustError, UsageError, WireError
from fedpact.common.invitation import Invitation

_TIMEOUT_SECONDS = 30.0
_SERVER_CERTIFICATE = "The coordinator's server certificate"
_NodeId = Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]


class SiteSettings(BaseModel):
    """`site.toml`: who we are and whom we joined.

    Attributes:
        institution: our name, as studies name us.
        sector: academia, industry or government.
        coordinator: host:port that we dial.
        node_id: our number at SuperLink, an unsigned 64-bit number.
        ca_fingerprint: SHA-256 of the coordinator's CA certificate.
        joined_at: when.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    institution: str
    sector: str
    coordinator: str
    node_id: _NodeId
    ca_fingerprint: str
    joined_at: datetime


@dataclass(frozen=True)
class JoinedSite:
    """All that a site needs to dial its coordinator.

    Attributes:
        institution: our name, as studies name us.
        sector: academia, industry or government.
        address: host:port of the coordinator.
        ca: the coordinator's CA certificate, PEM.
        keys: this site's key pair.
        node_id: our number at SuperLink.
    """

    institution: str
    sector: str
    address: str
    ca: bytes
    keys: tuple[certificates.PrivateKey, certificates.PublicKey]
    node_id: int


class _Answer(BaseModel):
    institution: str
    sector: str
    node_id: _NodeId
    version: str


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
            f"This site has joined {_settings(home).coordinator} already.",
            advice="Take another folder for another coordinator (FEDPACT_CLIENT_HOME).",
        )
    authority = _find_authority(invitation)
    home.create()
    public_key = _make_keys(home)
    answer = _ask(invitation, certificates.certificate_pem(authority), public_key)
    if answer.institution != invitation.institution:
        raise TrustError(
            f"The coordinator answered for {answer.institution}, the token is for "
            f"{invitation.institution}.",
            advice="Ask the coordinator for a new token.",
        )
    settings = SiteSettings(
        institution=answer.institution,
        sector=answer.sector,
        coordinator=invitation.address,
        node_id=answer.node_id,
        ca_fingerprint=invitation.fingerprint,
        joined_at=datetime.now(UTC).replace(microsecond=0),
    )
    write_private(home.ca, certificates.certificate_pem(authority))
    write_private(home.site, tomli_w.dumps(settings.model_dump()).encode())
    return settings


def load_site(home: ClientHome) -> JoinedSite:
    """What `join` left in a site's folder, checked.

    Raises:
        TrustError: this site has not joined anyone, or a key or certificate is missing,
            altered or expired.
    """
    settings = _settings(home)
    authority = certificates.load_certificate(home.ca)
    if certificates.fingerprint(authority) != settings.ca_fingerprint:
        raise TrustError(f"{home.ca} is not the CA that this site joined.")
    certificates.check_validity(authority, "The coordinator's CA certificate")
    key = certificates.load_private_key(home.private_key)
    return JoinedSite(
        institution=settings.institution,
        sector=settings.sector,
        address=settings.coordinator,
        ca=certificates.certificate_pem(authority),
        keys=(key, key.public_key()),
        node_id=int(settings.node_id),
    )


def _settings(home: ClientHome) -> SiteSettings:
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
    chain = _chain(invitation.address)
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


def _chain(address: str) -> list[x509.Certificate]:
    """The chain that a server shows; it is told nothing but that somebody asks.

    This goes through httpx so that it takes the same way, through a proxy if there is one,
    as everything after it.
    """
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    with (
        _client(unverified) as client,
        _Dialling(address),
        client.stream("HEAD", f"https://{address}/") as response,
    ):
        stream = response.extensions["network_stream"]
        # Python 3.13 made this method public on the socket; this object has it since 3.10.
        shown: Any = stream.get_extra_info("ssl_object").get_unverified_chain()
        return [x509.load_pem_x509_certificate(c.public_bytes().encode()) for c in shown]


def _make_keys(home: ClientHome) -> bytes:
    """Make the site's keys, unless an earlier attempt did; the public one, PEM."""
    if home.private_key.exists():
        key = certificates.load_private_key(home.private_key)
    else:
        key = certificates.new_key()
        write_private(home.private_key, certificates.private_pem(key))
    public = certificates.public_pem(key.public_key())
    write_private(home.public_key, public)
    return public


def _ask(invitation: Invitation, ca: bytes, public_key: bytes) -> _Answer:
    """Send secret and public key to the coordinator, and to nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    body = {"secret": invitation.secret, "public_key": public_key.decode()}
    with _client(context) as client, _Dialling(invitation.address):
        response = client.post(f"https://{invitation.address}/v1/join", json=body)
    if response.status_code == httpx.codes.FORBIDDEN:
        raise TrustError(_detail(response), advice="Ask the coordinator for a new token.")
    if response.is_error:
        raise AddressError(
            f"The coordinator at {invitation.address} did not take us in: {_detail(response)}",
            advice="Try again in a minute.",
        )
    try:
        return _Answer.model_validate_json(response.content)
    except ValidationError as error:
        raise WireError("The answer to joining is not a coordinator's.") from error


def _client(context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(verify=context, timeout=_TIMEOUT_SECONDS)


class _Dialling:
    """What goes wrong with a connection becomes our error."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, httpx.TransportError):
            return
        reason = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise TrustError(
                f"The certificate of {self._address} is not valid: {reason}."
            ) from error
        raise AddressError(
            f"The coordinator at {self._address} cannot be reached: {reason}.",
            advice="Check the address, the network and HTTPS_PROXY.",
        ) from error


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, TypeError, LookupError):
        return f"HTTP {response.status_code}."
