"""Metrics for Prometheus: an endpoint that is opened only where somebody asks for one.

It has neither TLS nor passwords, so it is bound to loopback unless `FEDPACT_METRICS_HOST`
says otherwise. Each room has metrics of its own, in a registry of its own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from prometheus_client import CollectorRegistry, start_http_server

from fedpact.common.errors import AddressError

HOST_VARIABLE = "FEDPACT_METRICS_HOST"
_LOOPBACK = "127.0.0.1"


def host() -> str:
    """The address that an endpoint is bound to."""
    return os.environ.get(HOST_VARIABLE) or _LOOPBACK


def stays_here() -> bool:
    """Whether that address is loopback, so that only this machine can read the metrics."""
    name = host()
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


@contextmanager
def serving(registry: CollectorRegistry, port: int | None) -> Iterator[None]:
    """Serve `/metrics` meanwhile.

    Args:
        registry: the metrics.
        port: where; None opens nothing.

    Raises:
        AddressError: the port is in use, or the address is not this machine's.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, host(), registry)
    except OSError as error:
        raise AddressError(
            f"The metrics cannot be served on {host()}:{port}: {error.strerror or error}.",
            advice=f"Take another --metrics-port, or look at {HOST_VARIABLE}.",
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
