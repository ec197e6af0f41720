"""The transcript: a record of what happened that nobody can rewrite.

Each party keeps its own. An **entry** names the hash of the entry before it and is signed, so
an entry fixes all that stands before it. A **head** is the author's signature under the length
of the record and its last hash, so it fixes the whole. Parties send each other their heads and
write down those they saw (`head-seen`): whoever later shows another past is contradicted by
what the others hold (`fedpact.common.transcript_check`).

What is hashed and signed is canonical JSON (keys sorted, no white space; after RFC 8785), each
with a prefix of its own: no signature can be taken for that of something else.
Written down, an entry or a head is canonical JSON too, on one line. Another spelling of the
same content is refused: every bit counts.

Hashes are SHA-256, signatures those of `fedpact.common.identity`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, Self, get_args

from fedpact.common import identity
from fedpact.common.errors import AuditError
from fedpact.common.identity import SigningKey, VerifyKey

Json = bool | int | float | str | None | Sequence["Json"] | Mapping[str, "Json"]
Kind = Literal[
    "invited",
    "joined",
    "revoked",
    "rotated",
    "proposed",
    "decided",
    "recalled",
    "ended",
    "run-started",
    "run-resumed",
    "round-started",
    "reserved",
    "settled",
    "update-sent",
    "update-received",
    "refused",
    "aggregated",
    "run-ended",
    "released",
    "head-seen",
]

COORDINATOR = "coordinator"
NO_HASH = "0" * 64
# Bytes of a line with its end: an entry says what happened, it does not carry data.
LONGEST_LINE = 2**20

_KINDS = frozenset(get_args(Kind))
_ENTRY_HASH = b"fedpact transcript entry v1\n"
_HASH_BYTES, _SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True)
class Entry:
    """Something that happened, as one party wrote it down.

    Attributes:
        number: its place in the author's transcript, from 0.
        moment: when it was written down, by the author's clock.
        author: the institution's name, or `coordinator`.
        kind: what happened.
        body: the particulars of it: a JSON object.
        previous: the hash of the entry before; zeros for the first.
        hash: SHA-256 of all of the above, in hexadecimal.
        signature: the author's, under the hash, in hexadecimal.
    """

    number: int
    moment: datetime
    author: str
    kind: Kind
    body: Mapping[str, Json]
    previous: str
    hash: str
    signature: str

    @classmethod
    def sign(
        cls,
        key: SigningKey,
        *,
        number: int,
        moment: datetime,
        author: str,
        kind: Kind,
        body: Mapping[str, Json],
        previous: str,
    ) -> Self:
        """Write an entry.

        Args:
            key: the author's.
            number: its place, from 0.
            moment: with its time zone; it is written in UTC.
            author: the institution's name, or `coordinator`.
            kind: what happened.
            body: the particulars; what is given is copied.
            previous: the hash of the entry before, or `NO_HASH`.

        Raises:
            AuditError: a transcript cannot hold this, for instance a body with NaN in it.
        """
        document: dict[str, Any] = {
            "author": author,
            "body": body,
            "kind": kind,
            "moment": _moment_text(moment),
            "number": number,
            "previous": previous,
        }
        try:
            document["hash"] = _entry_hash(document)
            document["signature"] = identity.sign(
                key, "entry", bytes.fromhex(document["hash"])
            ).hex()
            line = canonical(document)
            if len(line.encode()) >= LONGEST_LINE:
                raise ValueError("it is too long")  # noqa: TRY301 - said as all else below is
            # What is written is what is read again: nothing enters that would not be accepted.
            return cls.parse(line)
        except (TypeError, ValueError, RecursionError) as error:
            raise AuditError(f"No transcript can hold this {kind!r} entry: {error}.") from error

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read an entry's canonical text; whether it fits its place is another question.

        Raises:
            ValueError: it is not the canonical text of an entry; the message says why.
        """
        return cls.from_document(parse_canonical(line))

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Read an entry from what its canonical text holds.

        Raises:
            ValueError: it is not an entry, or its hash is not that of its content.
        """
        if (
            document.keys() != _ENTRY_KEYS
            or not isinstance(document["author"], str)
            or not isinstance(document["body"], dict)
        ):
            raise ValueError("it has not the form of an entry")
        number, kind = document["number"], document["kind"]
        if type(number) is not int or number < 0:
            raise ValueError("its number is none")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError("nothing of its kind is known")
        moment = _parse_moment(document["moment"])
        require_hex(document["previous"], _HASH_BYTES, "previous")
        require_hex(document["signature"], _SIGNATURE_BYTES, "signature")
        content = {k: v for k, v in document.items() if k not in {"hash", "signature"}}
        if document["hash"] != _entry_hash(content):
            raise ValueError("its hash is not that of its content")
        if kind == "head-seen":
            Head.from_document(document["body"])
        entry = cls(**{**document, "moment": moment})
        next_key(entry)
        return entry

    @property
    def line(self) -> str:
        """The canonical text, without an end of line."""
        return canonical({**vars(self), "moment": _moment_text(self.moment)})

    def is_signed_by(self, key: VerifyKey) -> bool:
        """Whether the signature under the hash is of this key."""
        return identity.is_signed(
            key, "entry", bytes.fromhex(self.hash), bytes.fromhex(self.signature)
        )


@dataclass(frozen=True)
class Head:
    """An author's word on its whole transcript: how long it is, and its last hash.

    Attributes:
        author: the institution's name, or `coordinator`.
        length: how many entries there are.
        hash: that of the last entry; zeros if there is none.
        signature: the author's, in hexadecimal.
    """

    author: str
    length: int
    hash: str
    signature: str

    @classmethod
    def sign(
        cls,
        key: SigningKey,
        *,
        author: str,
        length: int,
        last: str,
    ) -> Self:
        """Write a head.

        Args:
            key: the author's.
            author: the institution's name, or `coordinator`.
            length: how many entries there are.
            last: the hash of the last of them, or `NO_HASH`.
        """
        content = {"author": author, "hash": last, "length": length}
        signature = identity.sign(key, "head", canonical(content).encode())
        return cls(author=author, length=length, hash=last, signature=signature.hex())

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a head's canonical text; who signed it is another question.

        Raises:
            ValueError: it is not the canonical text of a head.
        """
        return cls.from_document(parse_canonical(line))

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Read a head from what its canonical text holds, or a `head-seen` entry's body.

        Raises:
            ValueError: it is not a head.
        """
        if document.keys() != HEAD_KEYS:
            raise ValueError("it has not the form of a head")
        length = document["length"]
        if not isinstance(document["author"], str) or type(length) is not int or length < 0:
            raise ValueError("it has not the form of a head")
        require_hex(document["hash"], _HASH_BYTES, "hash")
        require_hex(document["signature"], _SIGNATURE_BYTES, "signature")
        if length == 0 and document["hash"] != NO_HASH:
            raise ValueError("it is a head of nothing, yet has a hash")
        return cls(**document)

    @property
    def document(self) -> dict[str, Json]:
        """The head as a JSON object: the body of a `head-seen` entry."""
        return dict(vars(self))

    @property
    def line(self) -> str:
        """The canonical text, without an end of line."""
        return canonical(self.document)

    def contradicts(self, before: Self) -> bool:
        """Whether this head and an earlier one of its author cannot both be of one record.

        That a longer one really goes on from the shorter shows only in the record itself.
        """
        if self.length == before.length:
            return self.hash != before.hash
        return self.length < before.length

    def is_signed_by(self, key: VerifyKey) -> bool:
        """Whether the signature is of this key."""
        content = {"author": self.author, "hash": self.hash, "length": self.length}
        return identity.is_signed(
            key, "head", canonical(content).encode(), bytes.fromhex(self.signature)
        )


def next_key(entry: Entry) -> bytes | None:
    """The public key with which its author's transcript goes on after an entry.

    Returns:
        32 bytes, if the entry says that the author's own key changes: kind `rotated`, with a
        `key` and nothing else in its body. None: it goes on with the same key.

    Raises:
        ValueError: it names something that is no key, or is the first entry.
    """
    if entry.kind != "rotated" or entry.body.keys() != {"key"}:
        return None
    if entry.number == 0:
        raise ValueError("it changes a key that has signed nothing")
    return require_hex(entry.body["key"], _HASH_BYTES, "key")


HEAD_KEYS = frozenset(Head.__annotations__)
_ENTRY_KEYS = frozenset(Entry.__annotations__)


def canonical(document: object) -> str:
    """Canonical JSON: keys sorted, no white space, by the same rules as a study's.

    Raises:
        ValueError: there is something in it that JSON does not have, such as NaN.
        TypeError: the same, for a type that JSON does not have.
    """
    return _ENCODER.encode(document)


def parse_canonical(text: str) -> dict[str, Any]:
    """Read the canonical JSON of an object.

    Raises:
        ValueError: the text is another, even if it means the same.
    """
    try:
        document = _DECODER.decode(text)
        if isinstance(document, dict) and canonical(document) == text:
            return document
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    raise ValueError("it is not an object in canonical JSON")


def require_hex(value: object, size: int, what: str) -> bytes:
    """The bytes that a text gives in lower-case hexadecimal, the only form that is accepted.

    Raises:
        ValueError: it is not of that form, or has not `size` bytes.
    """
    if isinstance(value, str):
        try:
            found = bytes.fromhex(value)
        except ValueError:
            found = b""
        if len(found) == size and found.hex() == value:
            return found
    raise ValueError(f"its {what} is not {size} bytes in hexadecimal")


def fingerprint(key: VerifyKey) -> str:
    """SHA-256 of a public key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(identity.public_bytes(key)).hexdigest()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _entry_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_ENTRY_HASH + canonical(content).encode()).hexdigest()


def _moment_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _parse_moment(text: object) -> datetime:
    if isinstance(text, str):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo == UTC and _moment_text(moment) == text:
            return moment
    raise ValueError("its moment is not one in UTC with microseconds")
