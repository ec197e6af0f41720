"""Whatever bytes another party sends, what reads them says so with its own error, or reads them.

Each reader gets noise, and valid messages that were changed a little: the second go deeper.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpact.common import identity, wire
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.agreement import Decision
from fedpact.common.errors import StudyError, TrustError, WireError
from fedpact.common.invitation import PREFIX, Invitation, new_secret
from fedpact.common.study import Study
from support.site_factory import a_study, some_weights, update_header, update_request

STUDY = a_study()
WEIGHTS = some_weights()
REQUEST = update_request(STUDY, WEIGHTS)
UPDATE = wire.pack(update_header(WEIGHTS), WEIGHTS)
KEY = identity.new_signing_key()
DECISION = Decision.make(KEY, "Clinic", STUDY.digest, "approve", "It is fine.")
TOKEN = Invitation("host:1", "host:2", "a" * 64, "Clinic", "data-holder", new_secret()).encode()

fuzz = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300)
    | st.floats()
    | st.text(max_size=20)
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def bitten(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes of which a few were changed, taken out or put in."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(out)))
        out[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(out)


@st.composite
def rewritten(draw: st.DrawFn, text: str) -> str:
    """JSON in which one value, anywhere, is another, or a key is new, gone or there twice."""
    document = json.loads(text)
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        place[key] = draw(anything)
        break
    if isinstance(place, dict) and draw(st.booleans()):
        place[draw(st.text(max_size=8))] = draw(anything)
    return json.dumps(document, ensure_ascii=draw(st.booleans()))


def texts_like(text: str) -> st.SearchStrategy[str]:
    changed = bitten(text.encode()).map(lambda data: data.decode(errors="surrogateescape"))
    return st.text() | changed | rewritten(text)


def reads_or(error: type[Exception], read: Callable[[], object]) -> None:
    """Either it is read, or refused with the one error that its docstring names."""
    said = "read"
    try:
        read()
    except error as refused:
        said = str(refused)
    assert 0 < len(said) < 5000


@fuzz
@given(
    header=texts_like(REQUEST.header) | texts_like(UPDATE.header),
    array=st.binary(max_size=64) | bitten(WEIGHTS.to_bytes()) | st.just(WEIGHTS.to_bytes()),
)
def test_a_message_is_read_or_refused(header, array):
    packet = wire.Packet.of({"header": header, "array": array})
    reads_or(WireError, lambda: wire.unpack(packet))


@fuzz
@given(
    fields=st.dictionaries(
        st.sampled_from(["header", "array", "more"]), anything | st.binary(max_size=9)
    )
)
def test_what_a_transport_brings_is_read_or_refused(fields):
    reads_or(WireError, lambda: wire.unpack(wire.Packet.of(fields)))


@fuzz
@given(text=texts_like(STUDY.canonical()))
def test_a_study_is_read_or_refused(text):
    reads_or(StudyError, lambda: Study.from_canonical(text))


@fuzz
@given(text=rewritten(STUDY.canonical()))
def test_a_study_that_is_read_has_one_form(text):
    """What is not refused is what its digest says: no two texts for one study."""
    canonical = json.dumps(
        json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )

    def read() -> None:
        study = Study.from_canonical(canonical)
        assert study.digest == hashlib.sha256(canonical.encode()).hexdigest()
        assert study.total_steps > 0
        for institution in study.institutions:
            assert 0 < study.sample_rate(institution.name) <= 1

    reads_or(StudyError, read)


@st.composite
def tokens(draw: st.DrawFn) -> str:
    """Tokens with a right checksum over a wrong content: those get the furthest."""
    content = json.dumps(draw(anything)).encode()
    whole = content + hashlib.sha256(content).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(whole).decode().rstrip("=")


@fuzz
@given(
    token=st.text()
    | st.text().map(PREFIX.__add__)
    | tokens()
    | bitten(TOKEN.encode()).map(lambda data: data.decode(errors="surrogateescape"))
)
def test_a_token_is_read_or_refused(token):
    reads_or(TrustError, lambda: Invitation.decode(token))


@fuzz
@given(
    shapes=st.lists(st.lists(st.integers(1, 2**62), max_size=4).map(tuple), max_size=3),
    data=st.binary(max_size=64),
)
def test_an_array_is_read_or_refused(shapes, data):
    manifest = Manifest(tuple(map(str, range(len(shapes)))), tuple(shapes))
    reads_or(WireError, lambda: Weights.from_bytes(manifest, data).tensors())


@fuzz
@given(text=texts_like(DECISION.model_dump_json()))
def test_a_decision_is_read_or_refused_and_only_the_signed_one_holds(text):
    try:
        decision = Decision.model_validate_json(text)
    except (ValidationError, UnicodeEncodeError):
        return
    if decision == DECISION:
        return
    with pytest.raises(TrustError):
        decision.check(KEY.public_key())


@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_json_nested_however_deep_is_refused(depth, bracket):
    start = "[" if bracket == "[]" else '{"a":'
    bomb = start * depth + "1" + bracket[1] * depth
    with pytest.raises(WireError):
        wire.unpack(wire.Packet(header=bomb))
    with pytest.raises(StudyError):
        Study.from_canonical(bomb)
    content = bomb.encode()
    whole = content + hashlib.sha256(content).digest()[:4]
    with pytest.raises(TrustError):
        Invitation.decode(PREFIX + base64.urlsafe_b64encode(whole).decode().rstrip("="))
    with pytest.raises(ValidationError):
        Decision.model_validate_json(bomb)


def test_a_token_nested_as_deep_as_it_may_be_long_is_refused():
    content = b"[" * 1400
    whole = content + hashlib.sha256(content).digest()[:4]
    with pytest.raises(TrustError):
        Invitation.decode(PREFIX + base64.urlsafe_b64encode(whole).decode().rstrip("="))
