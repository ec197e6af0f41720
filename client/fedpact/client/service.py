"""The control plane as an institution calls it.

    with Service.of(home) as service:
        status = service.federation.Status(pb.StatusRequest())

Every call is signed with the institution's key, goes over TLS that trusts the pinned CA alone,
has a deadline, and ends in one of our errors if it fails.
"""

from typing import Any, Self

from fedpact.client.home import ClientHome
from fedpact.client.join import JoinedSite, load_site
from fedpact.common.identity import SigningKey
from fedpact.common.signed_calls import CALL_SECONDS, dial
from fedpact.common.v1 import federation_pb2_grpc as rpc


class Service:
    """A connection to the control plane; close it, or use it in a `with`.

    Attributes:
        site: whom the institution joined, and as what.
        federation: the methods of `fedpact.v1.Federation`. What they raise: TrustError (the
            key is not accepted, or the clock is off), AddressError (the coordinator is not
            reached or does not answer in time), WireError (it answers what it must not), and
            whatever error the coordinator names.
    """

    def __init__(
        self, site: JoinedSite, *, key: SigningKey | None = None, timeout: float = CALL_SECONDS
    ) -> None:
        """Prepare the connection; it is made by the first call.

        Args:
            site: what joining left.
            key: signs instead of the institution's present key.
            timeout: seconds until a call is given up.
        """
        self.site = site
        self._channel = dial(site.service, site.ca, key or site.signing_key, timeout)
        self.federation: Any = rpc.FederationStub(  # type: ignore[no-untyped-call] # generated code
            self._channel
        )

    @classmethod
    def of(cls, home: ClientHome) -> Self:
        """The control plane that an institution's folder has joined.

        Raises:
            TrustError: it has not joined, or a key or certificate cannot be used.
        """
        return cls(load_site(home))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()
