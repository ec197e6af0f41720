"""`fedpact audit`: check the transcripts that the parties of a study keep."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import hexdigits
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from fedpact.common.identity import VerifyKey
    from fedpact.common.transcript_check import Transcript
    from fedpact.server.recompute import Recomputed

audit_app = typer.Typer(no_args_is_help=True, help="Check what the parties wrote down.")

_HEX_DIGITS = 64


@audit_app.callback()
def _audit() -> None:
    """Check what the parties wrote down."""


@audit_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An exported transcript.")],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another transcript: that of a party that saw this one's heads, or an older "
            "one of the same party."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="The public key of FILE's author, from a place that you trust: 64 hexadecimal "
            "digits, or a PEM file. Without it, the key in FILE is taken."
        ),
    ] = None,
    recompute: Annotated[
        Path | None,
        typer.Option(
            help="The coordinator's folder of artifacts: aggregate each round's stored updates "
            "again, which must give the adapter that the transcript names, bit for bit."
        ),
    ] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="How to print.")] = "table",  # noqa: A002
) -> None:
    """Check that a transcript is whole, and that no other one contradicts it."""
    import json

    from fedpact.common import transcript_check

    mine = transcript_check.verify(_lines(file), _public_key(key) if key else None)
    verified, heads = [mine], None
    if against is not None:
        theirs = transcript_check.verify(_lines(against))
        verified.append(theirs)
        heads = transcript_check.compare(mine, theirs) + transcript_check.compare(theirs, mine)
    again = _recomputed(file, recompute) if recompute is not None else None
    summaries = [_summary(transcript) for transcript in verified]
    if format == "json":
        found = {
            "transcripts": summaries,
            "heads_matched": heads,
            "rounds_recomputed": again and again.rounds,
            "rounds_noised": again and again.noised,
        }
        typer.echo(json.dumps(found, indent=2))
        return
    for summary in summaries:
        typer.echo("".join(f"{name:<16}{value}\n" for name, value in summary.items()))
    typer.echo("\n".join(_verdict(heads, is_pinned=key is not None)))
    if again is not None:
        typer.echo(f"{again.rounds} rounds aggregated again gave the adapters that it names.")
    if again is not None and again.noised:
        typer.echo(
            f"{again.noised} rounds have the coordinator's own noise, which nobody can draw again: "
            "they were not checked."
        )


@audit_app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    server: Annotated[
        Path | None, typer.Option(help="A coordinator's folder: its transcript.")
    ] = None,
    client: Annotated[
        Path | None, typer.Option(help="An institution's folder: its transcript.")
    ] = None,
    *,
    coordinators: Annotated[
        bool,
        typer.Option(
            "--coordinators",
            help="With --client: the coordinator's transcript, asked of the coordinator.",
        ),
    ] = False,
) -> None:
    """Write a transcript to one file, which anybody can verify without access to its author."""
    from fedpact.common.errors import UsageError
    from fedpact.common.transcript_store import write_lines

    if (server is None) == (client is None) or (coordinators and client is None):
        raise UsageError(
            "Name whose transcript it is: --server FOLDER or --client FOLDER.",
            advice="`--client FOLDER --coordinators` asks the coordinator for its own.",
        )
    if client is not None and coordinators:
        from fedpact.client.heads import fetch
        from fedpact.client.home import ClientHome

        write_lines(file, fetch(ClientHome(client)))
    else:
        _export_own(file, server, client)
    typer.echo(f"Wrote {file}: `fedpact audit verify {file}` checks it.")


def _export_own(file: Path, server: Path | None, client: Path | None) -> None:
    from sqlalchemy.orm import Session

    from fedpact.client.home import ClientHome
    from fedpact.common.errors import TrustError
    from fedpact.common.transcript_store import transcript_of
    from fedpact.server.home import ServerHome

    home = ServerHome(server) if server is not None else ClientHome(client or Path())
    engine = home.open_database()
    with Session(engine) as session:
        if (store := transcript_of(session)) is None:
            raise TrustError(
                f"{client} has not joined a coordinator, so it has no transcript.",
                advice="`fedpact client join TOKEN`.",
            )
        store.export(session, file)
    engine.dispose()


def _recomputed(file: Path, artifacts: Path) -> "Recomputed":
    from fedpact.common.transcript import HEAD_KEYS, Entry, parse_canonical
    from fedpact.server.recompute import recompute

    def entries() -> "Iterator[Entry]":
        lines = (line.decode().rstrip("\n") for line in _lines(file))
        next(lines)
        documents = map(parse_canonical, lines)
        yield from (Entry.from_document(d) for d in documents if d.keys() != HEAD_KEYS)

    return recompute(entries(), artifacts)


def _verdict(heads: int | None, *, is_pinned: bool) -> Iterator[str]:
    yield "Nothing was changed, left out, added or moved."
    if not is_pinned:
        yield "The key is the file's own: compare its fingerprint, or give --key."
    if heads:
        yield f"{heads} signed heads matched: neither contradicts the other."
    elif heads == 0:
        yield "Neither holds a head of the other: they were not compared."


def _summary(transcript: "Transcript") -> dict[str, str | int | None]:
    from fedpact.common.transcript import fingerprint

    first, last = transcript.first, transcript.last
    return {
        "author": transcript.author,
        "key_fingerprint": fingerprint(transcript.key),
        "entries": len(transcript.hashes),
        "first": first.isoformat() if first else None,
        "last": last.isoformat() if last else None,
    }


def _lines(file: Path) -> Iterator[bytes]:
    from fedpact.common.errors import DataError
    from fedpact.common.transcript import LONGEST_LINE

    try:
        with file.open("rb") as content:
            yield from iter(partial(content.readline, LONGEST_LINE + 1), b"")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error


def _public_key(given: str) -> "VerifyKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from fedpact.common.errors import TrustError
    from fedpact.common.identity import VerifyKey, public_bytes, verify_key

    if len(given) == _HEX_DIGITS and all(digit in hexdigits for digit in given):
        return verify_key(bytes.fromhex(given))
    try:
        key = load_pem_public_key(Path(given).read_bytes())
    except OSError as error:
        raise TrustError(
            f"{given} is not a key of {_HEX_DIGITS} hexadecimal digits, and no file that can "
            f"be read: {error.strerror or error}."
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{given} does not hold a public key in PEM.") from error
    if not isinstance(key, VerifyKey):
        raise TrustError(f"The key in {given} is not an Ed25519 key.")
    return verify_key(public_bytes(key))
