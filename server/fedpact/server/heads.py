"""Transcript heads and the transcript itself, over the control plane.

Once a site has shown the head of its transcript, it cannot show another past: the head is
written down here, signed by it. The site holds ours in the same way.
"""

import itertools
import logging
from collections.abc import Iterator

from sqlalchemy import Engine

from fedpact.common import identity
from fedpact.common.errors import AuditError, TrustError, WireError
from fedpact.common.head_messages import head_message, head_of
from fedpact.common.transcript_store import TranscriptStore, transcript_of
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.server.tables import transaction

log = logging.getLogger(__name__)

_LINES_AT_ONCE = 500


def exchange(engine: Engine, institution: str, key: bytes, message: pb.Head) -> pb.Head:
    """Write down an institution's head, and give ours.

    Args:
        engine: the coordinator's database.
        institution: who calls.
        key: the Ed25519 public key that signed the call.
        message: its head.

    Raises:
        WireError: it is not a head.
        TrustError: it is another's, or not signed with the caller's key.
        AuditError: it contradicts a head that the institution showed before; both are kept.
    """
    head = head_of(message)
    if head.author != institution or not head.is_signed_by(identity.verify_key(key)):
        raise TrustError(f"The head is not one that {institution} signed with its key.")
    with transaction(engine) as session:
        store = _store(transcript_of(session))
        before = store.last_seen(session, institution)
        if before is None or before.length < head.length or before.hash != head.hash:
            store.append(session, "head-seen", head.document)
        ours = head_message(store.head(session))
    if before is not None and head.contradicts(before):
        log.error("%s shows another past than before; both heads are kept", institution)
        raise AuditError(
            f"This head has {head.length} entries; one of {before.length} was shown before "
            "and is not its beginning.",
            advice="Restore the transcript from a copy, or say openly that it was lost.",
        )
    return ours


def transcript(engine: Engine) -> Iterator[pb.TranscriptLines]:
    """The coordinator's transcript, some lines at a time."""
    with transaction(engine) as session:
        lines = _store(transcript_of(session)).lines(session)
        while some := list(itertools.islice(lines, _LINES_AT_ONCE)):
            yield pb.TranscriptLines(lines=some)


def _store(found: TranscriptStore | None) -> TranscriptStore:
    if found is None:
        raise WireError("This coordinator keeps no transcript.")
    return found
