"""Signing keys and what they sign."""

import pytest

from fedpact.common import certificates, identity
from fedpact.common.errors import TrustError


def test_a_signature_is_good_for_its_key_purpose_and_bytes_only():
    key, other = identity.new_signing_key(), identity.new_signing_key()
    signature = identity.sign(key, "decision", b"yes")

    assert identity.is_signed(key.public_key(), "decision", b"yes", signature)
    assert not identity.is_signed(other.public_key(), "decision", b"yes", signature)
    assert not identity.is_signed(key.public_key(), "entry", b"yes", signature)
    assert not identity.is_signed(key.public_key(), "decision", b"no", signature)
    assert not identity.is_signed(key.public_key(), "decision", b"yes", b"")


def test_a_key_survives_its_file_and_its_32_bytes(tmp_path):
    key = identity.new_signing_key()
    path = tmp_path / "sign.key"
    path.write_bytes(identity.private_pem(key))

    again = identity.load_signing_key(path)

    raw = identity.public_bytes(again)
    assert raw == identity.public_bytes(key)
    assert len(raw) == identity.KEY_BYTES
    assert identity.public_bytes(identity.verify_key(raw)) == raw


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_what_is_not_a_signing_key_is_named(tmp_path, content):
    path = tmp_path / "sign.key"
    path.write_bytes(
        certificates.private_pem(certificates.new_key()) if content is None else content
    )

    with pytest.raises(TrustError, match=r"sign\.key"):
        identity.load_signing_key(path)


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(TrustError, match=r"gone\.key"):
        identity.load_signing_key(tmp_path / "gone.key")


@pytest.mark.parametrize("raw", [b"", b"x" * 31, b"x" * 33])
def test_a_public_key_of_the_wrong_size_is_refused(raw):
    with pytest.raises(TrustError):
        identity.verify_key(raw)


@pytest.mark.parametrize("sign", [0, 0x80])
@pytest.mark.parametrize("y", sorted(identity._WEAK), ids=lambda y: y.hex()[:8])
def test_a_key_under_which_anybody_can_sign_is_refused(y, sign):
    raw = bytes((*y[:-1], y[-1] | sign))
    nobodys = bytes((1, *bytes(63)))  # R is the neutral element, S is zero
    weak = identity.VerifyKey.from_public_bytes(raw)
    contents = (str(number).encode() for number in range(1000))
    assert any(identity.is_signed(weak, "head", content, nobodys) for content in contents)

    with pytest.raises(TrustError, match="anybody can sign"):
        identity.verify_key(raw)
