"""Who signs: each party's Ed25519 key (RFC 8032), and what it signs.

A signature is over a purpose and bytes: one that was given for a decision can never be shown
as one for a transcript. Keys are made where they are used and never leave; what travels is
the public key's 32 bytes, in files its PEM.
"""

from enum import StrEnum
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from fedpact.common.errors import TrustError

SigningKey = Ed25519PrivateKey
VerifyKey = Ed25519PublicKey
Purpose = Literal[
    "call", "decision", "join", "statement", "entry", "head", "verdict", "release"
]
KEY_BYTES = 32
# The points of small order, as y (RFC 8032, 5.1.2): under such a key a signature that anybody
# can make is good for many or all contents, so its owner could deny what it signed.
_WEAK = frozenset(
    bytes.fromhex(y)
    for y in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


class Role(StrEnum):
    """What an institution does in a federation; the coordinator has a role of its own."""

    DATA_HOLDER = "data-holder"
    RESEARCHER = "researcher"
    AUDITOR = "auditor"
    COORDINATOR = "coordinator"


def new_signing_key() -> SigningKey:
    """A new Ed25519 private key."""
    return Ed25519PrivateKey.generate()


def private_pem(key: SigningKey) -> bytes:
    """A private key as PKCS 8 PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_signing_key(path: Path) -> SigningKey:
    """Read a signing key's file.

    Raises:
        TrustError: there is none, it cannot be read, or it is not an Ed25519 key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise TrustError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise TrustError(f"{path} does not hold a private key: {error}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"The key in {path} is not an Ed25519 key.")
    return key


def public_bytes(key: SigningKey | VerifyKey) -> bytes:
    """The public key's 32 bytes."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes_raw()


def verify_key(raw: bytes) -> VerifyKey:
    """Read the 32 bytes of a public key that another party sent.

    Raises:
        TrustError: they are not a public key, or one under which anybody can sign.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise TrustError("The Ed25519 public key is damaged.") from error
    # The highest bit is the sign of x.
    if bytes((*raw[:-1], raw[-1] & 0x7F)) in _WEAK:
        raise TrustError("The Ed25519 public key is one under which anybody can sign.")
    return key


def sign(key: SigningKey, purpose: Purpose, content: bytes) -> bytes:
    """Sign bytes for one purpose; the signature has 64 bytes."""
    return key.sign(_framed(purpose, content))


def is_signed(key: VerifyKey, purpose: Purpose, content: bytes, signature: bytes) -> bool:
    """Whether a signature is of this key, for this purpose, over these bytes."""
    try:
        key.verify(signature, _framed(purpose, content))
    except InvalidSignature:
        return False
    return True


def _framed(purpose: Purpose, content: bytes) -> bytes:
    return f"fedpact {purpose} v1\n".encode() + content
