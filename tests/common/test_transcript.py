"""The transcript: any change is found, and named where it begins."""

import hashlib
import io
import json
import random
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpact.common.errors import AuditError, TrustError
from fedpact.common.transcript import NO_HASH, Entry, Head, canonical
from fedpact.common.transcript_check import (
    Transcript,
    compare,
    header_line,
    require_held,
    verify,
)

KEY = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
BODIES = [
    {"run": f"run-{number}", "ε": number / 8, "who": ["Örebro", None]} for number in range(20)
]


def chain(bodies, *, author="North", key=KEY, kind="settled", first=0, previous=NO_HASH):
    """Entries, signed and linked, as their author would write them."""
    entries = []
    for number, body in enumerate(bodies, start=first):
        entry = Entry.sign(
            key,
            number=number,
            moment=AT + timedelta(seconds=number),
            author=author,
            kind="head-seen" if isinstance(body, Head) else kind,
            body=body.document if isinstance(body, Head) else body,
            previous=previous,
        )
        entries.append(entry)
        previous = entry.hash
    return entries


def head_of(entries, *, author="North", key=KEY):
    last = entries[-1].hash if entries else NO_HASH
    return Head.sign(key, author=author, length=len(entries), last=last)


def file_of(entries, *, author="North", key=KEY, head=None) -> bytes:
    end = head or head_of(entries, author=author, key=key)
    lines = [header_line(author, key.public_key()), *(e.line for e in entries), end.line]
    return "".join(f"{line}\n" for line in lines).encode()


def lines_of(content: bytes) -> list[bytes]:
    """As a file gives them: only a line feed ends a line."""
    return list(io.BytesIO(content))


def read(bodies, *, author="North", key=KEY) -> Transcript:
    return verify(
        lines_of(file_of(chain(bodies, author=author, key=key), author=author, key=key))
    )


def resigned(document: dict, key=KEY) -> str:
    """A line with a content of our choice, as only the author could write it."""
    content = {k: v for k, v in document.items() if k not in {"hash", "signature"}}
    digest = hashlib.sha256(b"fedpact transcript entry v1\n" + canonical(content).encode())
    signature = key.sign(b"fedpact entry v1\n" + digest.digest()).hex()
    return canonical({**content, "hash": digest.hexdigest(), "signature": signature})


def test_a_whole_transcript_is_accepted_and_summed_up():
    entries = chain(BODIES)
    found = verify(lines_of(file_of(entries)), KEY.public_key())
    assert found.author == "North"
    assert [h.hex() for h in found.hashes] == [entry.hash for entry in entries]
    assert (found.first, found.last) == (AT, AT + timedelta(seconds=19))
    assert found.head == head_of(entries)


def test_a_transcript_without_entries_is_accepted():
    found = read([])
    assert (found.hashes, found.first, found.last, found.head.length) == ((), None, None, 0)


def test_what_is_hashed_and_signed_stays_the_same():
    """Transcripts are kept for years: these bytes may never change under the same version."""
    (entry,) = chain([{"b": 1.5, "a": ["ü", None, True]}])
    assert entry.line == (
        '{"author":"North","body":{"a":["ü",null,true],"b":1.5},"hash":"' + entry.hash + '",'
        '"kind":"settled","moment":"2026-01-02T03:04:05.000678+00:00","number":0,'
        f'"previous":"{NO_HASH}","signature":"{entry.signature}"}}'
    )
    assert entry.hash == "53e28eafd48c47ef897233c730d3c92afacec56cbcdc235632c35ad21996a2b8"
    assert head_of([entry]).signature[:32] == "8961c7232b317535d932ccd2096e8110"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)
bodies = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=4
)


@given(st.lists(bodies, max_size=5))
def test_whatever_json_is_written_is_read_again(contents):
    entries = chain(contents)
    assert [Entry.parse(entry.line) for entry in entries] == entries
    assert [entry.body for entry in entries] == contents
    found = verify(lines_of(file_of(entries)), KEY.public_key())
    assert len(found.hashes) == len(contents)
    assert Head.parse(found.head.line) == found.head


@given(
    st.datetimes(
        timezones=st.just(timezone(timedelta(hours=-7))),
        min_value=datetime(2000, 1, 1),  # noqa: DTZ001
    )
)
def test_moments_are_kept_to_the_microsecond_in_utc(moment):
    entry = Entry.sign(
        KEY, number=0, moment=moment, author="N", kind="invited", body={}, previous=NO_HASH
    )
    assert Entry.parse(entry.line).moment == moment
    assert '+00:00"' in entry.line


@pytest.mark.parametrize(
    "body",
    [
        {"x": float("nan")},
        {"x": [float("-inf")]},
        {"x": b"bytes"},
        {"x": "\ud800"},
        {1: "a", "1": "b"},
        {"x": "y" * 2**20},
        ["no object"],
        {"x": {1, 2}},
    ],
    ids=lambda body: repr(body)[:20],
)
def test_what_no_transcript_can_hold_is_refused_when_written(body):
    with pytest.raises(AuditError, match="No transcript can hold this"):
        chain([body])


def test_a_body_nested_without_end_is_refused():
    body: dict = {}
    body["x"] = body
    with pytest.raises(AuditError, match="No transcript can hold this"):
        chain([body])
    deep = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    head, *rest = lines_of(file_of(chain(BODIES)))
    with pytest.raises(AuditError, match="Entry 0 of North does not fit: it is nested"):
        verify([head, deep, *rest])


@pytest.mark.parametrize(
    ("kind", "body"),
    [("forged", {}), ("head-seen", {}), ("head-seen", {"author": "x", "length": 1})],
)
def test_a_kind_or_head_that_is_none_is_refused(kind, body):
    with pytest.raises(AuditError, match="No transcript can hold this"):
        chain([body], kind=kind)


def flip_a_bit(rng, lines):
    content = bytearray(b"".join(lines))
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return lines_of(bytes(content))


def drop(rng, lines):
    at = rng.randrange(len(lines))
    return lines[:at] + lines[at + rng.randint(1, 3) :]


def double(rng, lines):
    at = rng.randint(0, len(lines))
    return [*lines[:at], rng.choice(lines), *lines[at:]]


def reorder(rng, lines):
    one, two = rng.sample(range(len(lines)), 2)
    lines[one], lines[two] = lines[two], lines[one]
    return lines


def cut_entries_off(rng, lines):
    return [*lines[: -1 - rng.randint(1, len(lines) - 2)], lines[-1]]


def cut_bytes_off(rng, lines):
    content = b"".join(lines)
    return lines_of(content[: rng.randrange(len(content))])


def splice(rng, lines):
    """A line of another author, of another key, of another past, or of an older file."""
    at = rng.randrange(len(lines))
    return [*lines[:at], rng.choice(ELSEWHERE), *lines[at + rng.randint(0, 1) :]]


NORTH = chain(BODIES)
ELSEWHERE = [
    line
    for content in (
        file_of(chain(BODIES, author="South"), author="South"),
        file_of(chain(BODIES, key=OTHER_KEY), key=OTHER_KEY),
        file_of(chain([{"run": "another"}, *BODIES[1:]])),
        file_of(NORTH[:12]),
    )
    for line in lines_of(content)
]
CUTS = [drop, double, reorder, cut_entries_off, cut_bytes_off, splice]


def test_ten_thousand_random_changes_are_all_found():
    rng = random.Random(20260102)  # noqa: S311 - not for a secret
    whole = lines_of(file_of(NORTH))
    accepted, tried = [], 0
    while tried < 10_000:
        mutation = flip_a_bit if tried % 2 else CUTS[tried // 2 % len(CUTS)]
        lines = mutation(rng, list(whole))
        if lines == whole:
            continue  # a line was replaced by itself
        tried += 1
        try:
            verify(lines)
        except AuditError:
            continue
        accepted.append((mutation.__name__, b"".join(lines)))
    assert accepted == []


def test_every_single_bit_counts():
    content = file_of(chain([{"a": 1}]))
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuditError):
            verify(lines_of(bytes(changed)))


def replaced(number: int, line: str, entries=None) -> list[bytes]:
    lines = lines_of(file_of(entries or chain(BODIES)))
    lines[number + 1] = f"{line}\n".encode()
    return lines


def document(number: int) -> dict:
    return json.loads(chain(BODIES)[number].line)


SPELLINGS = {
    "white space": lambda d: json.dumps(d, sort_keys=True, ensure_ascii=False),
    "another order": lambda d: json.dumps(
        dict(reversed(d.items())), separators=(",", ":"), ensure_ascii=False
    ),
    "escapes": lambda d: json.dumps(d, sort_keys=True, separators=(",", ":")),
    "a key twice": lambda d: canonical(d).replace('"kind"', '"kind":"invited","kind"', 1),
    "a float's zeros": lambda d: canonical(d).replace("0.875", "0.8750"),
    "NaN": lambda d: canonical(d).replace("0.875", "NaN"),
    "a byte order mark": lambda d: "\ufeff" + canonical(d),
    "a carriage return": lambda d: canonical(d) + "\r",
    "a list": lambda d: canonical([d]),
    "nothing": lambda _: "",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_of_the_same_is_refused(spelling):
    line = SPELLINGS[spelling](document(7))
    with pytest.raises(AuditError, match=r"^Entry 7 of North does not fit: it is not"):
        verify(replaced(7, line))


CHANGES = {
    "its hash is not that of its content": lambda d: canonical({**d, "body": {}}),
    "its number is 8": lambda d: resigned({**d, "number": 8}),
    "its author is another": lambda d: resigned({**d, "author": "South"}),
    "its previous hash is not": lambda d: resigned({**d, "previous": "ab" * 32}),
    "its signature is not of": lambda d: resigned(d, OTHER_KEY),
    "nothing of its kind": lambda d: resigned({**d, "kind": "forged"}),
    "it has not the form of an entry": lambda d: resigned({**d, "extra": 1}),
    "its moment is not one in UTC": lambda d: resigned({**d, "moment": "2026-01-02"}),
    "its signature is not 64 bytes": lambda d: canonical(
        {**d, "signature": d["signature"].upper()}
    ),
    "its number is none": lambda d: resigned({**d, "number": 7.0}),
    "it has not the form of a head": lambda d: resigned({**d, "kind": "head-seen"}),
}


@pytest.mark.parametrize("why", CHANGES)
def test_the_first_entry_that_does_not_fit_is_named_with_what_is_wrong(why):
    with pytest.raises(AuditError, match=rf"^Entry 7 of North does not fit: {why}"):
        verify(replaced(7, CHANGES[why](document(7))))


def test_an_entry_rewritten_by_its_author_breaks_the_next():
    line = resigned({**document(7), "body": {"another": "past"}})
    with pytest.raises(AuditError, match="Entry 8 of North does not fit: its previous hash"):
        verify(replaced(7, line))


def test_entries_missing_at_the_end_are_found():
    entries = chain(BODIES)
    cut = file_of(entries[:15], head=head_of(entries))
    with pytest.raises(AuditError, match="Entry 15 of North is missing") as raised:
        verify(lines_of(cut))
    assert "signed head of 20 entries" in str(raised.value)
    with pytest.raises(AuditError, match="ends after 20 entries without a signed head"):
        verify(lines_of(file_of(entries))[:-1])


def test_entries_after_the_head_and_lines_after_it_are_found():
    entries = chain(BODIES)
    with pytest.raises(
        AuditError, match="Entry 15 of North does not fit: the signed head ends"
    ):
        verify(lines_of(file_of(entries, head=head_of(entries[:15]))))
    with pytest.raises(AuditError, match="Something follows"):
        verify([*lines_of(file_of(entries)), b"\n"])


def test_a_head_of_another_or_of_another_past_is_found():
    entries = chain(BODIES)
    for head in (head_of(entries, key=OTHER_KEY), head_of(entries, author="South")):
        with pytest.raises(AuditError, match="not signed with its key"):
            verify(lines_of(file_of(entries, head=head)))
    other = head_of(chain(BODIES[::-1]))
    with pytest.raises(AuditError, match="Entry 19 of North does not fit: its hash"):
        verify(lines_of(file_of(entries, head=other)))


@pytest.mark.parametrize(
    "change",
    [{"length": -1}, {"length": True}, {"length": 1.0}, {"length": 0}, {"author": 1}, {"x": 1}],
    ids=str,
)
def test_a_head_of_another_form_is_refused(change):
    good = Head.sign(KEY, author="North", length=1, last="ab" * 32)
    assert Head.parse(good.line) == good
    with pytest.raises(ValueError, match=r"has not the form of a head|a head of nothing"):
        Head.parse(canonical({**good.document, **change}))


def test_a_transcript_signed_anew_with_another_key_is_refused_where_the_key_is_known():
    forged = lines_of(file_of(chain(BODIES, key=OTHER_KEY), key=OTHER_KEY))
    assert verify(forged).author == "North"
    with pytest.raises(AuditError, match="another key than the one given"):
        verify(forged, KEY.public_key())


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"text,label\n",
        b"{}\n",
        header_line("North", KEY.public_key()).replace(" v1", " v2").encode() + b"\n",
        header_line("No\x1brth", KEY.public_key()).encode() + b"\n",
        header_line("", KEY.public_key()).encode() + b"\n",
        header_line("North", KEY.public_key()).encode(),
    ],
)
def test_what_is_no_transcript_is_said(first):
    with pytest.raises(AuditError, match="This is not a transcript"):
        verify([first, *lines_of(file_of(chain(BODIES)))[1:]])


def test_a_key_under_which_anybody_can_sign_is_refused():
    weak = Ed25519PublicKey.from_public_bytes(bytes((1, *bytes(31))))
    with pytest.raises(TrustError, match="anybody can sign"):
        verify([f"{header_line('North', weak)}\n".encode()])


def test_a_line_longer_than_any_entry_is_refused():
    header = lines_of(file_of([]))[0]
    with pytest.raises(AuditError, match="it is too long"):
        verify([header, b'{"x":"' + b"y" * 2**20])


def south(*heads):
    return read([BODIES[0], *heads, BODIES[1]], author="South", key=OTHER_KEY)


def test_heads_that_the_other_recorded_are_found_again():
    entries = chain(BODIES)
    mine = verify(lines_of(file_of(entries)))
    theirs = south(head_of([]), head_of(entries[:3]), head_of(entries))
    assert compare(mine, theirs) == 3
    assert compare(theirs, mine) == 0
    stranger = Head.sign(KEY, author="East", length=1, last="ab" * 32)
    assert compare(mine, south(stranger)) == 0


@settings(max_examples=30, deadline=None)
@given(seen=st.integers(1, 20), changed=st.integers(0, 19))
def test_a_past_rewritten_after_it_was_seen_is_found(seen, changed):
    """Everything is signed anew with the true key: only the other side can know."""
    theirs = south(head_of(chain(BODIES)[:seen]))
    rewritten = read([*BODIES[:changed], {"run": "never"}, *BODIES[changed + 1 :]])
    if changed >= seen:
        assert compare(rewritten, theirs) == 1
        return
    with pytest.raises(AuditError, match=f"Entry {seen - 1} of North .* entry 1 of South"):
        compare(rewritten, theirs)


def test_a_past_cut_off_after_it_was_seen_is_found():
    theirs = south(head_of(chain(BODIES)[:3]), head_of(chain(BODIES)))
    with pytest.raises(AuditError, match="Entry 15 of North is missing: entry 2 of South"):
        compare(read(BODIES[:15]), theirs)


def test_an_accusation_needs_the_signature_of_the_accused():
    invented = Head.sign(OTHER_KEY, author="North", length=3, last="ab" * 32)
    with pytest.raises(AuditError, match="entry 1 of South is not signed with its key"):
        compare(read(BODIES), south(invented))


def test_an_older_file_of_the_same_author_must_be_the_beginning_of_the_newer():
    older, newer = read(BODIES[:12]), read(BODIES)
    assert compare(newer, older) + compare(older, newer) == 1
    with pytest.raises(AuditError, match="Entry 11 of North does not fit"):
        compare(read([{}, *BODIES[1:]]), older)


def test_a_head_from_anywhere_can_be_held_against_a_transcript():
    require_held(read(BODIES), head_of(chain(BODIES)[:5]), where="an e-mail")
    with pytest.raises(AuditError, match="an e-mail"):
        require_held(read(BODIES), head_of(chain(BODIES[::-1])[:5]), where="an e-mail")
