"""`fedpact audit verify`: what it prints, and how it ends."""

import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from fedpact.common.errors import AuditError, DataError, TrustError
from fedpact.common.transcript import NO_HASH, Entry, Head, fingerprint
from fedpact.common.transcript_check import header_line
from fedpact.simulations import cli
from support.federation import fedpact

KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32))
    for name in ("North", "coordinator")
}


def write(path, author, bodies, *, key=None):
    """An exported transcript; its head."""
    key = key or KEYS[author]
    lines, previous = [header_line(author, key.public_key())], NO_HASH
    for number, body in enumerate(bodies):
        entry = Entry.sign(
            key,
            number=number,
            moment=datetime(2026, 1, 1 + number, tzinfo=UTC),
            author=author,
            kind="head-seen" if "signature" in body else "settled",
            body=body,
            previous=previous,
        )
        previous = entry.hash
        lines.append(entry.line)
    head = Head.sign(key, author=author, length=len(bodies), last=previous)
    path.write_text("".join(f"{line}\n" for line in [*lines, head.line]), encoding="utf-8")
    return head


@pytest.fixture
def north(tmp_path):
    path = tmp_path / "north.jsonl"
    write(path, "North", [{"x": 1}, {"x": 2}])
    return path


@pytest.fixture
def coordinator(tmp_path, north):
    """Has seen both heads that North's transcript has had."""
    path = tmp_path / "coordinator.jsonl"
    early = write(north, "North", [{"x": 1}])
    late = write(north, "North", [{"x": 1}, {"x": 2}])
    write(path, "coordinator", [early.document, {}, late.document])
    return path


def run(*arguments):
    return CliRunner().invoke(cli.app, ["audit", "verify", *map(str, arguments)])


def test_a_transcript_alone_is_summed_up(north):
    done = run(north)
    assert done.exit_code == 0, done.output
    print_ = fingerprint(KEYS["North"].public_key())
    for part in ("North", print_, "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"):
        assert part in done.output
    assert "compare its fingerprint" in done.output
    assert "compared." not in done.output


def test_two_are_held_against_each_other(north, coordinator):
    for pair in ((north, coordinator), (coordinator, north)):
        done = run(pair[0], "--against", pair[1], "--format", "json")
        assert done.exit_code == 0, done.output
        result = json.loads(done.output)
        assert result["heads_matched"] == 2
        assert [t["author"] for t in result["transcripts"]] == [
            "North" if path == north else "coordinator" for path in pair
        ]
        assert [t["entries"] for t in result["transcripts"]] == [
            2 if path == north else 3 for path in pair
        ]
    assert "2 signed heads matched" in run(north, "--against", coordinator).output


def test_that_nothing_was_compared_is_said(tmp_path, north):
    write(tmp_path / "stranger.jsonl", "coordinator", [{}])
    done = run(north, "--against", tmp_path / "stranger.jsonl")
    assert done.exit_code == 0
    assert "they were not compared" in done.output


@pytest.mark.parametrize("turned", [False, True])
def test_a_rewritten_past_is_found_in_both_directions(north, coordinator, turned):
    write(north, "North", [{"x": 1}, {"x": 99}])
    assert run(north).exit_code == 0
    mine, theirs = (coordinator, north) if turned else (north, coordinator)
    done = run(mine, "--against", theirs)
    assert isinstance(done.exception, AuditError)
    assert "Entry 1 of North does not fit" in str(done.exception)
    assert "entry 2 of coordinator" in str(done.exception)


def test_the_command_ends_with_its_code_and_one_sentence(north):
    content = north.read_bytes()
    north.write_bytes(content.replace(b'"x":1', b'"x":7'))
    done = fedpact("audit", "verify", str(north))
    assert (done.returncode, done.stdout) == (AuditError.exit_code, "")
    first, *rest = done.stderr.strip().splitlines()
    assert (
        first == "fedpact: Entry 0 of North does not fit: its hash is not that of its content."
    )
    assert len(rest) == 1


def pem(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize("form", ["hex", "pem"])
def test_a_key_that_is_known_pins_the_author(tmp_path, north, form):
    def given(name):
        if form == "hex":
            return KEYS[name].public_key().public_bytes_raw().hex()
        (tmp_path / f"{name}.pem").write_bytes(pem(KEYS[name]))
        return str(tmp_path / f"{name}.pem")

    done = run(north, "--key", given("North"))
    assert done.exit_code == 0
    assert "compare its fingerprint" not in done.output
    wrong = run(north, "--key", given("coordinator"))
    assert isinstance(wrong.exception, AuditError)
    assert "another key" in str(wrong.exception)


def test_what_is_no_key_or_no_file_is_said(tmp_path, north):
    (tmp_path / "no.pem").write_text("no key", encoding="utf-8")
    (tmp_path / "other.pem").write_bytes(pem(ec.generate_private_key(ec.SECP384R1())))
    for key in ("ab" * 31, tmp_path / "no.pem", tmp_path / "other.pem", tmp_path):
        assert isinstance(run(north, "--key", key).exception, TrustError)
    for file in (tmp_path, tmp_path / "none.jsonl"):
        assert isinstance(run(file).exception, DataError)
        assert isinstance(run(north, "--against", file).exception, DataError)
