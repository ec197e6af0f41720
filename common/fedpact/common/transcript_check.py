"""Checking transcripts: one alone, and those of two parties against each other.

A transcript's file is JSON lines, each ended by a line feed: a header (format, author, public
key), the entries, and the author's signed head. Alone, it shows whether anything was changed,
left out, added or moved after the head was signed. That its author did not sign another past
later shows only against what others hold: an entry `head-seen` of theirs, or an older file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedpact.common import identity
from fedpact.common.errors import AuditError
from fedpact.common.identity import VerifyKey
from fedpact.common.study_words import Name
from fedpact.common.transcript import (
    HEAD_KEYS,
    LONGEST_LINE,
    NO_HASH,
    Entry,
    Head,
    canonical,
    next_key,
    parse_canonical,
    require_hex,
)

FORMAT = "fedpact transcript v1"
_HEADER_KEYS = {"author", "format", "public_key"}
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True)
class Seen:
    """A head of another party, as an entry recorded it.

    Attributes:
        number: the entry.
        head: what was seen; its signature has not been checked.
    """

    number: int
    head: Head


@dataclass(frozen=True)
class Update:
    """An update that one side sent or the other received, as an entry recorded it.

    Attributes:
        number: the entry.
        institution: whose site sent it.
        of: run, round and digest.
    """

    number: int
    institution: str
    of: tuple[str, int, str]


@dataclass(frozen=True, eq=False)
class Transcript:
    """What remains of a transcript that was verified: enough to hold it against others.

    Attributes:
        author: whose it is.
        keys: the author's public keys: from how many entries on, and which. A key signs the
            entries from there on, the heads of that length or more, and the change to the next.
        hashes: of each entry, 32 bytes each.
        seen: the heads of others that its entries recorded.
        sent: updates that the author sent.
        received: updates that it received.
        head: the signed head at its end.
        first: the first entry's moment; None if there is no entry.
        last: the last entry's moment.
    """

    author: str
    keys: tuple[tuple[int, VerifyKey], ...]
    hashes: tuple[bytes, ...]
    seen: tuple[Seen, ...]
    sent: tuple[Update, ...]
    received: tuple[Update, ...]
    head: Head
    first: datetime | None
    last: datetime | None

    @property
    def key(self) -> VerifyKey:
        """The author's newest public key."""
        return self.keys[-1][1]

    def key_at(self, length: int) -> VerifyKey:
        """The public key in use once this many entries were written."""
        return next(key for start, key in reversed(self.keys) if start <= length)


def header_line(author: str, key: VerifyKey) -> str:
    """The first line of a transcript's file, without an end of line."""
    public_key = identity.public_bytes(key).hex()
    return canonical({"author": author, "format": FORMAT, "public_key": public_key})


def verify(lines: Iterable[bytes], key: VerifyKey | None = None) -> Transcript:
    """Check a transcript's file, line by line.

    Args:
        lines: of the file, each with its line feed.
        key: the author's public key, from a place that is trusted: any that it ever had.
            Without it the keys in the file are taken: then the file is known to be whole, not
            whose it is.

    Raises:
        AuditError: it is not whole; the message names the first entry that does not fit, and
            what of it: its form, number, author, hash, previous hash or signature, or that the
            transcript is shorter than its head.
        TrustError: the key in the file is one under which anybody can sign.
    """
    rest = iter(lines)
    author, own = _header(next(rest, b""))
    keys = [(0, own)]
    hashes: list[bytes] = []
    seen: list[Seen] = []
    updates: dict[str, list[Update]] = {"update-sent": [], "update-received": []}
    first = last = None
    previous = NO_HASH
    for line in rest:
        number = len(hashes)
        try:
            document = parse_canonical(_text(line))
            if document.keys() == HEAD_KEYS:
                head = Head.from_document(document)
                break
            entry = Entry.from_document(document)
            _require_place(entry, number, author, previous, own)
            if (changed := next_key(entry)) is not None:
                own = identity.verify_key(changed)
                keys.append((number + 1, own))
        except ValueError as why:
            raise _misfit(author, number, why) from why
        if entry.kind == "head-seen":
            seen.append(Seen(number, Head.from_document(dict(entry.body))))
        if entry.kind in updates:
            updates[entry.kind].append(_update(entry))
        first, last = first or entry.moment, entry.moment
        previous = entry.hash
        hashes.append(bytes.fromhex(previous))
    else:
        raise AuditError(
            f"The transcript of {author} ends after {len(hashes)} entries without a signed head.",
            advice="Lines at its end are missing: ask for the file again.",
        )
    transcript = Transcript(
        author=author,
        keys=tuple(keys),
        hashes=tuple(hashes),
        seen=tuple(seen),
        sent=tuple(updates["update-sent"]),
        received=tuple(updates["update-received"]),
        head=head,
        first=first,
        last=last,
    )
    require_held(transcript, head, where="its last line")
    if key is not None and all(key != one for _, one in keys):
        raise AuditError(
            f"The transcript of {author} is signed with another key than the one given.",
            advice="Ask its author, by another way than the file's, which key is its own.",
        )
    if head.length < len(hashes):
        raise _misfit(author, head.length, ValueError("the signed head ends before it"))
    if next(rest, None) is not None:
        raise AuditError(f"Something follows the signed head of {author}.")
    return transcript


def require_held(transcript: Transcript, head: Head, *, where: str) -> None:
    """Check that a head which was seen elsewhere is one of this transcript.

    Args:
        transcript: a verified one.
        head: of the same author.
        where: how the error calls the place in which the head stands.

    Raises:
        AuditError: the transcript's author did not sign the head, the transcript is shorter
            than it, or holds another past.
    """
    author, length = transcript.author, len(transcript.hashes)
    if head.author != author or not head.is_signed_by(transcript.key_at(head.length)):
        raise AuditError(f"The head of {author} in {where} is not signed with its key.")
    if head.length > length:
        raise AuditError(
            f"Entry {length} of {author} is missing: {where} holds a signed head of "
            f"{head.length} entries.",
            advice="Ask for its file again. If they are still missing, they were removed.",
        )
    if head.length and transcript.hashes[head.length - 1].hex() != head.hash:
        raise AuditError(
            f"Entry {head.length - 1} of {author} does not fit: its hash is not that of the "
            f"signed head in {where}.",
            advice="The author has signed two pasts: keep both files, they prove it.",
        )


def compare(mine: Transcript, theirs: Transcript) -> int:
    """Hold a transcript against the heads of it that the other side recorded.

    Every update that one side says it received, the other must say it sent. Call it in both
    directions. Of two transcripts of one author, the shorter is held against
    the longer, and must be its beginning.

    Returns:
        How many heads were found in it.

    Raises:
        AuditError: the first contradiction.
    """
    if mine.author == theirs.author:
        if len(mine.hashes) >= len(theirs.hashes):
            require_held(mine, theirs.head, where="its other file")
            return 1
        return 0
    matched = [seen for seen in theirs.seen if seen.head.author == mine.author]
    for seen in matched:
        require_held(mine, seen.head, where=f"entry {seen.number} of {theirs.author}")
    sent = {update.of for update in theirs.sent}
    for update in mine.received:
        if update.institution == theirs.author and update.of not in sent:
            run, number, digest = update.of
            raise AuditError(
                f"Entry {update.number} of {mine.author} does not fit: {theirs.author} does not "
                f"say that it sent {digest[:12]} in round {number} of run {run}.",
                advice=f"If the file of {theirs.author} is older than that, ask for it again.",
            )
    return len(matched)


def _update(entry: Entry) -> Update:
    body = entry.body
    whose = body.get("institution", entry.author)
    return Update(
        entry.number,
        str(whose),
        (str(body.get("run")), int(str(body.get("round", 0))), str(body.get("digest"))),
    )


def _header(line: bytes) -> tuple[str, VerifyKey]:
    try:
        return _parse_header(parse_canonical(_text(line)))
    except ValueError as why:
        raise AuditError(f"This is not a transcript: of its first line, {why}.") from why


def _parse_header(document: dict[str, Any]) -> tuple[str, VerifyKey]:
    if document.keys() != _HEADER_KEYS or document["format"] != FORMAT:
        raise ValueError(f"it does not say {FORMAT!r}")
    if not _is_name(document["author"]):
        raise ValueError("it does not name an author")
    raw = require_hex(document["public_key"], identity.KEY_BYTES, "public key")
    return document["author"], identity.verify_key(raw)


def _is_name(author: object) -> bool:
    try:
        return _NAME.validate_python(author, strict=True) == author
    except ValidationError:
        return False


def _require_place(
    entry: Entry, number: int, author: str, previous: str, key: VerifyKey
) -> None:
    if entry.number != number:
        raise ValueError(f"its number is {entry.number}")
    if entry.author != author:
        raise ValueError("its author is another")
    if entry.previous != previous:
        raise ValueError("its previous hash is not that of the entry before")
    if not entry.is_signed_by(key):
        raise ValueError("its signature is not of the author's key")


def _misfit(author: str, number: int, why: ValueError) -> AuditError:
    return AuditError(
        f"Entry {number} of {author} does not fit: {why}.",
        advice="What stands before it is whole; from there on the file was changed or damaged.",
    )


def _text(line: bytes) -> str:
    if len(line) > LONGEST_LINE:
        raise ValueError("it is too long")
    if not line.endswith(b"\n"):
        raise ValueError("its line has no end")
    try:
        return line[:-1].decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
