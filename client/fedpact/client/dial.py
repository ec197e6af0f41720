"""A look at the coordinator's public port: what it shows to anyone who asks.

Nothing is told to it but that somebody asks. The look goes through httpx, so that it takes
the same way, through a proxy if there is one, as everything after it.
"""

import ssl
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from cryptography import x509

from fedpact.common.errors import AddressError

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Shown:
    """What a server showed.

    Attributes:
        chain: its certificates, its own first; nobody has verified them yet.
        clock: its time, to the second; None: it does not say.
    """

    chain: tuple[x509.Certificate, ...]
    clock: datetime | None


def look(address: str) -> Shown:
    """Dial host:port under TLS and see what is shown there.

    Raises:
        AddressError: nobody answers there, or not with TLS.
    """
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with (
            httpx.Client(verify=unverified, timeout=_TIMEOUT_SECONDS) as client,
            client.stream("HEAD", f"https://{address}/") as response,
        ):
            stream = response.extensions["network_stream"]
            # Python 3.13 made this method public on the socket; the object has it since 3.10.
            shown: Any = stream.get_extra_info("ssl_object").get_unverified_chain()
            chain = tuple(x509.load_pem_x509_certificate(_pem(c)) for c in shown)
            date = response.headers.get("date")
    except httpx.TransportError as error:
        raise AddressError(
            f"The coordinator at {address} cannot be reached: {error or type(error).__name__}.",
            advice="Check the address, the firewall and HTTPS_PROXY; is the coordinator up?",
        ) from error
    return Shown(chain, parsedate_to_datetime(date) if date else None)


def _pem(certificate: Any) -> bytes:
    return str(certificate.public_bytes()).encode()
