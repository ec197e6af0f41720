"""Exchanging transcript heads with the coordinator, and fetching its transcript.

Whoever has shown a head cannot show another past later. The site shows its own whenever it
has written anything since the last exchange, and writes down the coordinator's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine

from fedpact.client.home import ClientHome
from fedpact.client.join import load_site
from fedpact.client.service import Service
from fedpact.client.tables import TranscriptRow, exclusive, reading
from fedpact.common.errors import AuditError, TrustError
from fedpact.common.head_messages import head_message, head_of
from fedpact.common.transcript import COORDINATOR
from fedpact.common.v1 import federation_pb2 as pb


@dataclass(frozen=True)
class Heads:
    """An institution's side of the exchange.

    Attributes:
        home: its folder.
        engine: its database.
    """

    home: ClientHome
    engine: Engine

    def has_news(self) -> bool:
        """Whether this site has written anything since the last exchange.

        Raises:
            TrustError: this site has not joined anyone.
            StorageError: the site's own database fails.
        """
        store = self.home.transcript_of(load_site(self.home).institution)
        with reading(self.engine) as session:
            newest = store.newest(session)
        return newest is not None and newest.kind != "head-seen"

    def exchange(self) -> bool:
        """Show our head and write the coordinator's down; whether there was anything to show.

        Raises:
            AddressError: the coordinator cannot be reached.
            AuditError: the coordinator shows another past than before; its head is kept.
            TrustError: what it shows is not signed with its key, or this site has not joined.
            StorageError: the site's own database fails.
        """
        site = load_site(self.home)
        if not self.has_news():
            return False
        store = self.home.transcript_of(site.institution)
        with reading(self.engine) as session:
            mine = store.head(session)
        with Service.of(self.home) as service:
            request = pb.ExchangeHeadsRequest(head=head_message(mine))
            theirs = head_of(service.federation.ExchangeHeads(request).head)
        if theirs.author != COORDINATOR or not theirs.is_signed_by(site.coordinator_key):
            raise TrustError("The coordinator's head is not signed with its key.")
        with exclusive(self.engine, TranscriptRow.__tablename__) as session:
            before = store.last_seen(session, COORDINATOR)
            store.append(session, "head-seen", theirs.document)
        if before is not None and theirs.contradicts(before):
            raise AuditError(
                f"The coordinator shows a record of {theirs.length} entries; one of "
                f"{before.length} was shown before and is not its beginning.",
                advice="Keep this site's folder as it is: both heads in its transcript are "
                "signed.",
            )
        return True


def fetch(home: ClientHome) -> Iterator[str]:
    """The coordinator's transcript, line by line; it has not been checked.

    Raises:
        FedpactError: as `Service.federation`.
    """
    with Service.of(home) as service:
        for some in service.federation.GetTranscript(pb.GetTranscriptRequest()):
            yield from some.lines
