"""The invitation: the one string that a coordinator gives to an institution so that it joins.

It says where the coordinator is, which CA proves that it is the coordinator, who is invited
and as what, and a secret that works once. Whoever holds it may join in the institution's name, so it is
sent as one sends a password. The coordinator keeps only the secret's SHA-256.

The token is `fedpact1-` and base64url of a JSON array, followed by four bytes of its SHA-256:
a character lost in copying is noticed before anything is dialled.
"""

import base64
import binascii
import hashlib
import json
import re
import secrets
from dataclasses import astuple, dataclass
from typing import Self

from fedpact.common.errors import AddressError, TrustError
from fedpact.common.identity import Role

PREFIX = "fedpact1-"
INVITED = frozenset(Role) - {Role.COORDINATOR}
_CHECK_BYTES = 4
_SECRET_BYTES = 32
_MAX_TOKEN = 2000
_MAX_PORT = 65535
_ADVICE = "Copy the whole token again, or ask the coordinator for a new one."


@dataclass(frozen=True)
class Invitation:
    """What a token says.

    Attributes:
        address: host:port of the coordinator's gateway.
        service: host:port of its control plane, where one joins.
        fingerprint: SHA-256 of the coordinator's CA certificate (DER), in hexadecimal.
        institution: who is invited.
        role: as what: data-holder, researcher or auditor.
        secret: 256 random bits, base64url.
    """

    address: str
    service: str
    fingerprint: str
    institution: str
    role: str
    secret: str

    def encode(self) -> str:
        """The token."""
        content = json.dumps(astuple(self), ensure_ascii=False, separators=(",", ":")).encode()
        return PREFIX + _encode(content + _checksum(content))

    @classmethod
    def decode(cls, token: str) -> Self:
        """Read a token; white space around and inside it (a line break in a mail) is ignored.

        Raises:
            TrustError: it is not a token, or a part of it is missing or altered.
        """
        token = "".join(token.split())
        if not token.startswith(PREFIX):
            raise TrustError(
                f"This is not a join token: those begin with `{PREFIX}`.", advice=_ADVICE
            )
        damaged = TrustError("The join token is damaged.", advice=_ADVICE)
        body = token.removeprefix(PREFIX)
        if len(body) > _MAX_TOKEN or not re.fullmatch(r"[A-Za-z0-9_-]+", body):
            raise damaged
        try:
            content = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except binascii.Error as error:
            raise damaged from error
        # The last character has bits that base64 does not use: they too must be as written.
        if _encode(content) != body:
            raise damaged
        content, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        if check != _checksum(content):
            raise damaged
        try:
            invitation = cls(*json.loads(content))
            if not invitation._is_plausible():
                raise damaged
            split_address(invitation.address)
            split_address(invitation.service)
        except (ValueError, TypeError, RecursionError, AddressError) as error:
            raise damaged from error
        return invitation

    def _is_plausible(self) -> bool:
        return (
            all(isinstance(value, str) for value in astuple(self))
            and re.fullmatch(r"[0-9a-f]{64}", self.fingerprint) is not None
            and re.fullmatch(r"[A-Za-z0-9_-]{43}", self.secret) is not None
            and bool(self.institution.strip())
            and self.role in INVITED
        )


def new_secret() -> str:
    """256 random bits, base64url."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def secret_sha256(secret: str) -> str:
    """SHA-256 of a secret, in hexadecimal: all that the coordinator keeps of it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def split_address(address: str) -> tuple[str, int]:
    """Take host:port apart; an IPv6 host stands in brackets.

    Raises:
        AddressError: it is not host:port.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise AddressError(f"{address!r} is not an address of the form host:port.")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Put host and port together; an IPv6 host goes into brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECK_BYTES]
