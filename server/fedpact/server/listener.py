"""The gateway's port: taken early, served under TLS by uvicorn."""

import logging
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from fedpact.common.errors import AddressError
from fedpact.common.invitation import join_address

log = logging.getLogger(__name__)

# Flower's client lets go of a connection after five idle seconds: it must be the first, or a
# call may go out on a connection that is just being closed.
_IDLE_SECONDS = 75
_GOODBYE_SECONDS = 3


def bind(host: str, port: int) -> socket.socket:
    """Take a public port.

    Raises:
        AddressError: it is in use, may not be taken, or `host` is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        # asyncio-style texts are long; but a name that is not found has a number of its own.
        is_name = error.errno is None or isinstance(error, socket.gaierror)
        reason = error.strerror if is_name else os.strerror(error.errno or 0)
        raise AddressError(
            f"The coordinator cannot listen on {join_address(host, port)}: {reason}.",
            advice="Stop what uses the port, or change it or `listen` in server.toml.",
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that it makes itself, and without
    # it an answer's body waits 40 ms for the acknowledgement of its headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class GatewayServer(uvicorn.Server):
    """Serves the gateway under TLS; whoever starts it decides about signals.

    Set `should_exit` to end it.
    """

    def __init__(self, app: ASGIApp, certificate: Path, key: Path) -> None:
        config = uvicorn.Config(
            app,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
            access_log=False,
            log_config=None,
            lifespan="off",
            server_header=False,
            # Sites compare their clock with it: a signature is only accepted for minutes.
            date_header=True,
            ws="none",
        )
        config.load()
        assert config.ssl is not None  # noqa: S101 - a certificate was given
        self._context = config.ssl
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._files = (certificate, key)
        self._written = certificate.stat().st_mtime_ns
        super().__init__(config)

    def take_renewed(self) -> None:
        """Show the certificate that lies in the files from the next handshake on."""
        certificate, key = self._files
        try:
            written = certificate.stat().st_mtime_ns
            if written != self._written:
                self._context.load_cert_chain(certificate, key)
                self._written = written
        except OSError as error:  # an ssl.SSLError is one: certificate and key do not fit
            log.warning("the new certificate cannot be used yet: %s", error)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: SuperLink must be stopped after the gateway, not instead."""
        yield
