"""Proof of possession: whoever names a signing key, when joining or changing it, holds it."""

import hashlib

from fedpact.common import identity
from fedpact.common.errors import TrustError
from fedpact.common.identity import SigningKey


def prove(key: SigningKey, node_key: bytes, binding: bytes) -> bytes:
    """Sign that this key belongs with a node's key, on one occasion.

    Args:
        key: the signing key that is named.
        node_key: the node's public key, PEM; empty for a role without a site.
        binding: the occasion: when joining, the secret's SHA-256 in hexadecimal; when keys
            are changed, the public key that signs the call.
    """
    return identity.sign(key, "join", _content(node_key, binding))


def check(signing_key: bytes, node_key: bytes, binding: bytes, proof: bytes) -> None:
    """Check a proof.

    Raises:
        TrustError: it is not of this key, or for another node or occasion.
    """
    key = identity.verify_key(signing_key)
    if not identity.is_signed(key, "join", _content(node_key, binding), proof):
        raise TrustError("The proof that the signing key is held is not valid.")


def _content(node_key: bytes, binding: bytes) -> bytes:
    # Hashed, so that no byte can move from one to the other.
    return hashlib.sha256(node_key).digest() + hashlib.sha256(binding).digest()
