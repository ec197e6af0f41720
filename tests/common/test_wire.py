"""Messages: what goes in comes out, and nothing else is taken for a message."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.errors import WireError
from fedpact.common.study_words import MAX_STEPS
from support.site_factory import a_study, some_weights, update_header

WEIGHTS = some_weights()
STUDY = a_study()
REQUEST = wire.RequestHeader(
    run="r-1",
    round=3,
    study_digest=STUDY.digest,
    study=STUDY.canonical(),
    adapter=wire.ArrayInfo.of(WEIGHTS),
)
UPDATE = update_header(WEIGHTS, metrics=wire.SiteMetrics(kind="raw", loss=0.1, accuracy=0.9))
METRICS = {"kind": "private", "loss": 0.1, "accuracy": 0.9}
REFUSAL = wire.Refusal(
    run="r-1", round=3, study_digest=STUDY.digest, code="budget", reason="no ε is left"
)


@pytest.mark.parametrize(
    ("header", "weights"), [(REQUEST, WEIGHTS), (UPDATE, WEIGHTS), (REFUSAL, None)]
)
def test_each_kind_of_message_comes_back(header, weights):
    packet = wire.pack(header, weights)
    read, array = wire.unpack(packet)
    assert read == header
    assert (array is None) == (weights is None)
    if array is not None and weights is not None:
        assert array.manifest == weights.manifest
        assert array.to_bytes() == weights.to_bytes()
    assert packet.size == len(packet.header.encode()) + len(packet.array)


@settings(max_examples=60, deadline=None)
@given(
    run=st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
    number=st.integers(1, wire.MAX_ROUND),
    epsilon=st.none() | st.floats(0, allow_infinity=False, allow_nan=False),
    steps=st.integers(0, MAX_STEPS),
    values=st.lists(st.floats(width=32), min_size=1, max_size=50),
)
def test_every_update_comes_back(run, number, epsilon, steps, values):
    change = Weights.from_tensors({"a": np.asarray(values, np.float32)})
    header = update_header(change, run=run, round=number, epsilon=epsilon, steps=steps)
    read, array = wire.unpack(wire.pack(header, change))
    assert read == header
    assert array is not None
    assert array.to_bytes() == change.to_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_array_is_noticed(data):
    packet = wire.pack(UPDATE, WEIGHTS)
    array = packet.array
    where = data.draw(st.integers(0, len(array) - 1))
    bit = data.draw(st.integers(0, 7))
    extra = data.draw(st.binary(min_size=1, max_size=8))
    for damaged in (
        array[:where] + bytes([array[where] ^ (1 << bit)]) + array[where + 1 :],
        array[:where],
        array + extra,
        array[:where] + extra + array[where:],
    ):
        with pytest.raises(WireError):
            wire.unpack(wire.Packet(header=packet.header, array=damaged))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_never_another_error(data):
    header = wire.pack(UPDATE, WEIGHTS).header
    where = data.draw(st.integers(0, len(header) - 1))
    piece = data.draw(st.text(max_size=4))
    damaged = header[:where] + piece + header[where + data.draw(st.integers(0, 3)) :]
    try:
        read, _ = wire.unpack(wire.Packet(header=damaged, array=WEIGHTS.to_bytes()))
    except WireError:
        return
    assert isinstance(read, wire.UpdateHeader)
    with pytest.raises(WireError):
        wire.unpack(wire.Packet(header=header[:where], array=WEIGHTS.to_bytes()))


@given(header=st.text(max_size=100), array=st.binary(max_size=100))
def test_noise_is_refused(header, array):
    with pytest.raises(WireError):
        wire.unpack(wire.Packet(header=header, array=array))


def changed(header: wire.RequestHeader | wire.UpdateHeader | wire.Refusal, **fields) -> str:
    return json.dumps({**json.loads(header.model_dump_json()), **fields})


@pytest.mark.parametrize(
    "header",
    [
        changed(UPDATE, protocol=2),
        changed(UPDATE, kind="other"),
        changed(UPDATE, more=1),
        changed(UPDATE, run="../../etc"),
        changed(UPDATE, run=""),
        changed(UPDATE, run="a\n"),
        changed(UPDATE, run="x" * 65),
        changed(UPDATE, round=0),
        changed(UPDATE, round=2**31),
        changed(UPDATE, round=10**40),
        changed(UPDATE, round=1.5),
        changed(UPDATE, study_digest="A" * 64),
        changed(UPDATE, study_digest="a" * 63),
        changed(UPDATE, epsilon=-1),
        changed(UPDATE, epsilon=float("nan")),
        changed(UPDATE, epsilon=float("inf")),
        changed(UPDATE, steps=-1),
        changed(UPDATE, metrics={"loss": 1, "accuracy": float("inf")}),
        changed(UPDATE, metrics={"loss": 1, "accuracy": 1, "f1": 1}),
        changed(UPDATE, metrics={**METRICS, "right": [1.0, 2.0], "wrong": [1.0]}),
        changed(UPDATE, metrics={**METRICS, "right": [1e300], "wrong": [1.0]}),
        changed(REFUSAL, code="whatever"),
        changed(REFUSAL, reason="x" * 2001),
        changed(REFUSAL, kind="update"),
        "",
        "null",
        "[]",
        "[" * 100_000,
        "\ud800",
        pickle.dumps({"kind": "update"}, protocol=0).decode("latin-1"),
    ],
)
def test_headers_that_are_not_ours_are_refused(header):
    with pytest.raises(WireError, match="header is not valid"):
        wire.unpack(wire.Packet(header=header, array=WEIGHTS.to_bytes()))


def test_a_refusal_has_no_array():
    with pytest.raises(WireError, match="came with an array"):
        wire.unpack(wire.Packet(header=REFUSAL.model_dump_json(), array=b"\0"))


def test_a_pickle_is_bytes_like_any_other():
    data = b"cos\nsystem\n(S'false'\ntR."
    with pytest.raises(WireError):
        wire.unpack(wire.Packet(header=UPDATE.model_dump_json(), array=data))
    padded = data.ljust(len(WEIGHTS.to_bytes()), b"\0")
    with pytest.raises(WireError, match="SHA-256"):
        wire.unpack(wire.Packet(header=UPDATE.model_dump_json(), array=padded))


@pytest.mark.parametrize(
    ("names", "shapes"),
    [
        (["a"], [[10**9]]),
        (["a"], [[2**40, 2**40]]),
        (["a"], [[2**32, 2**32]]),  # 2**64 values: 0 in a 64-bit integer
        (["a"], [[2**31, 2**33]]),
        (["a"], [[10**300]]),
        (["a", "b"], [[3]]),
        (["a"], [[3], [3]]),
        (["a", "a"], [[3], [3]]),
        (["a"], [[0]]),
        (["a"], [[-3]]),
        (["a"], [[-1, -3]]),
        (["a"], [[1.5]]),
        (["a"], ["3"]),
        ([], []),
    ],
)
def test_a_manifest_that_lies_is_refused_without_making_room_for_it(names, shapes):
    info = {"names": names, "shapes": shapes, "sha256": "0" * 64}
    header = changed(UPDATE, change=info)
    tracemalloc.start()
    with pytest.raises(WireError):
        wire.unpack(wire.Packet(header=header, array=b"\0" * 12))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_packet_is_read_from_whatever_a_transport_brings():
    packet = wire.pack(UPDATE, WEIGHTS)
    assert wire.Packet.of({"header": packet.header, "array": packet.array}) == packet
    for fields in ({}, {"header": 1, "array": "x"}, {"header": None, "array": None}):
        empty = wire.Packet.of(fields)
        assert (empty.header, empty.array) == ("", b"")
        with pytest.raises(WireError):
            wire.unpack(empty)


def test_the_array_is_little_endian_whatever_the_machine():
    weights = Weights.from_tensors({"a": np.asarray([1.0], dtype=">f4")})
    assert weights.to_bytes() == b"\x00\x00\x80\x3f"


def paths(value: object, prefix: str = "") -> set[str]:
    """Every path in a JSON object that does not end in another object."""
    if not isinstance(value, dict):
        return {prefix.removesuffix(".")}
    return {path for key, inner in value.items() for path in paths(inner, f"{prefix}{key}.")}


@pytest.mark.parametrize(("header", "weights"), [(UPDATE, WEIGHTS), (REFUSAL, None)])
def test_all_that_leaves_is_on_the_closed_list(header, weights):
    """A field that is added says what it tells, or this fails and the docs cannot be written."""
    listed = wire.what_leaves(type(header))
    packet = wire.pack(header, weights)
    assert set(packet.fields()) == {"header", "array"}
    array = {"(array)"} if packet.array else set()
    assert paths(json.loads(packet.header)) | array == set(listed)
    assert all(entry.what for entry in listed.values())


def test_a_field_that_does_not_say_what_it_tells_is_an_error():
    class Chatty(wire.Refusal):
        hint: str = ""

    with pytest.raises(WireError, match=r"Chatty\.hint"):
        wire.what_leaves(Chatty)
