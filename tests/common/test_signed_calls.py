"""What a call's signature is over, and what is read of metadata that anybody may have sent."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common import identity, possession
from fedpact.common.errors import TrustError
from fedpact.common.signed_calls import NONCE_BYTES, Stamp

KEY, OTHER = identity.new_signing_key(), identity.new_signing_key()
METHOD = "/fedpact.v1.Federation/Status"
NAMES = ("fedpact-key", "fedpact-time", "fedpact-nonce", "fedpact-signature")
GOOD = dict(Stamp.make(KEY, METHOD, b"request").metadata())


def test_what_was_signed_is_read_back():
    stamp = Stamp.make(KEY, METHOD, b"request")
    assert Stamp.parse(stamp.metadata()) == stamp
    assert stamp.is_signed(METHOD, b"request")
    assert stamp.key == identity.public_bytes(KEY)


def test_no_two_calls_are_signed_alike():
    stamps = [Stamp.make(KEY, METHOD, b"") for _ in range(100)]
    assert len({s.nonce for s in stamps}) == len({s.signature for s in stamps}) == 100


@given(st.binary(), st.text(), st.binary(), st.text())
def test_a_signature_is_of_one_request_to_one_method(request_, method, other, other_method):
    stamp = Stamp.make(KEY, method, request_)
    same = (request_, method) == (other, other_method)
    assert stamp.is_signed(other_method, other) == same


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_it_can_be_changed(name):
    another = dict(Stamp.make(OTHER, METHOD, b"request").metadata())
    another["fedpact-time"] = str(int(GOOD["fedpact-time"]) + 1)
    stamp = Stamp.parse((GOOD | {name: another[name]}).items())
    assert not stamp.is_signed(METHOD, b"request")


def test_a_signature_for_another_purpose_is_none():
    stamp = Stamp.make(KEY, METHOD, b"request")
    content = f"{METHOD}\n{stamp.moment}\n{stamp.nonce.hex()}\n".encode()
    for purpose in ("decision", "join", "entry"):
        forged = Stamp(
            stamp.key, stamp.moment, stamp.nonce, identity.sign(KEY, purpose, content)
        )
        assert not forged.is_signed(METHOD, b"request")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", ["", "x", "AB" * 32, "ab" * 31, "ab" * 65, "²", "-1", " 1", "1\n", "1" * 16]
)
def test_what_is_not_of_its_form_is_refused(name, value):
    with pytest.raises(TrustError, match=name):
        Stamp.parse((GOOD | {name: value}).items())


@pytest.mark.parametrize("name", NAMES)
def test_each_entry_is_there_once(name):
    with pytest.raises(TrustError, match=f"{name} is missing"):
        Stamp.parse([item for item in GOOD.items() if item[0] != name])
    with pytest.raises(TrustError, match=f"{name} is there twice"):
        Stamp.parse([*GOOD.items(), (name, GOOD[name])])


def test_entries_of_others_do_not_matter():
    others = [("user-agent", "x"), ("fedpact-other", "y"), ("user-agent", b"z")]
    assert Stamp.parse([*others, *GOOD.items()]) == Stamp.parse(GOOD.items())


VALUES = st.one_of(st.text(), st.binary(), st.sampled_from(sorted(GOOD.values())))


@given(st.lists(st.tuples(st.one_of(st.sampled_from(NAMES), st.text()), VALUES), max_size=8))
def test_whatever_is_sent_is_read_or_refused(metadata):
    try:
        stamp = Stamp.parse(metadata)
    except TrustError:
        return
    assert (len(stamp.key), len(stamp.nonce), len(stamp.signature)) == (32, NONCE_BYTES, 64)
    assert dict(metadata).items() >= dict(stamp.metadata()).items() - {
        ("fedpact-time", str(stamp.moment))
    }
    with suppress(TrustError):  # a key under which anybody can sign is none
        stamp.is_signed(METHOD, b"request")


@given(st.binary(), st.binary(), st.binary(), st.integers(0, 200))
def test_a_proof_of_possession_is_of_one_key_for_one_node_and_one_occasion(
    node, binding, other, cut
):
    proof = possession.prove(KEY, node, binding)
    public = identity.public_bytes(KEY)
    possession.check(public, node, binding, proof)
    whole = node + binding
    claims = {
        (identity.public_bytes(OTHER), node, binding),
        (public, other, binding),
        (public, node, other),
        (public, binding, node),
        (public, whole[:cut], whole[cut:]),
    } - {(public, node, binding)}
    for claim in claims:
        with pytest.raises(TrustError, match="proof"):
            possession.check(*claim, proof)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_a_key_or_proof_that_is_none_is_refused(key, proof):
    with pytest.raises(TrustError):
        possession.check(key, b"", b"", proof)
