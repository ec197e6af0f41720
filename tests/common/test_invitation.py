from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.errors import AddressError, TrustError
from fedpact.common.invitation import (
    PREFIX,
    Invitation,
    join_address,
    new_secret,
    secret_sha256,
    split_address,
)

INVITATION = Invitation(
    "fed.example.org:9443",
    "fed.example.org:9444",
    "ab" * 32,
    "Universität Ärzte",
    "data-holder",
    new_secret(),
)


@given(st.text(min_size=1, max_size=120).filter(lambda name: name.strip()))
def test_token_says_what_was_put_in(name):
    invitation = Invitation("[::1]:9443", "[::1]:9444", "0" * 64, name, "auditor", new_secret())
    assert Invitation.decode(invitation.encode()) == invitation


def test_token_is_one_word_and_survives_a_mail():
    token = INVITATION.encode()
    assert token.startswith(PREFIX)
    assert token.replace("-", "").replace("_", "").isalnum()
    broken_by_mail = f"  {token[:60]}\n   {token[60:]}\r\n"
    assert Invitation.decode(broken_by_mail) == INVITATION


@given(st.integers(min_value=len(PREFIX)), st.sampled_from("Ab3_-"))
def test_one_wrong_character_is_noticed(position, character):
    token = INVITATION.encode()
    position = len(PREFIX) + position % (len(token) - len(PREFIX))
    damaged = token[:position] + character + token[position + 1 :]
    if damaged == token:
        return
    with pytest.raises(TrustError, match="damaged"):
        Invitation.decode(damaged)


@given(st.integers(min_value=1))
def test_a_lost_end_is_noticed(lost):
    token = INVITATION.encode()
    shorter = token[: -(1 + lost % (len(token) - len(PREFIX)))]
    with pytest.raises(TrustError):
        Invitation.decode(shorter)


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ("", "not a join token"),
        ("fedpact2-abc", "not a join token"),
        (PREFIX, "damaged"),
        (PREFIX + "a" * 5000, "damaged"),
        (PREFIX + "ü", "damaged"),
    ],
)
def test_what_is_no_token_is_refused(token, sentence):
    with pytest.raises(TrustError, match=sentence):
        Invitation.decode(token)


@pytest.mark.parametrize(
    "invitation",
    [
        replace(INVITATION, address="nowhere"),
        replace(INVITATION, service="nowhere"),
        replace(INVITATION, role="coordinator"),
        replace(INVITATION, fingerprint="AB" * 32),
        replace(INVITATION, institution=" "),
        replace(INVITATION, secret="short"),
    ],
)
def test_a_whole_token_with_impossible_content_is_refused(invitation):
    with pytest.raises(TrustError, match="damaged"):
        Invitation.decode(invitation.encode())


def test_secret_has_256_bits_and_only_its_hash_is_kept():
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(secret) == 43 for secret in secrets)
    assert secret_sha256("a") == (
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    )


@pytest.mark.parametrize("address", [("a.example", 1), ("127.0.0.1", 65535), ("::1", 9443)])
def test_addresses_come_apart_as_they_went_together(address):
    assert split_address(join_address(*address)) == address


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:b", "::1:9443", "a:-1"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(AddressError, match="host:port"):
        split_address(text)
