"""The gateway: all that the outside sees of the coordinator.

What it lets through, and nothing else:

(1) The Fleet routes of SuperLink that a site's node needs, each by its name. Registering and
    unregistering nodes are not among them, and no route of any other API is.
(2) Only for a site that joined and was not shut out: the public key that the call names must
    be one of theirs. SuperLink then checks the signature; the gateway holds off everyone
    else before a byte of the body is read.
(3) Only headers that Flower needs, and bodies up to a limit.

Joining and all else that Flower does not carry is the control plane's (`fedpact.server.service`).

Everything else is 404, whatever the method. While SuperLink is away the answer is 503, which
Flower's client takes as "again, later".
"""

import asyncio
import base64
import binascii
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedpact.common.errors import FedpactError

log = logging.getLogger(__name__)

FLEET_ROUTES = frozenset(
    {
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "send-node-heartbeat",
    }
)
_PUBLIC_KEY_HEADER = "flwr-public-key"
_REQUEST_HEADERS = (
    "accept",
    "content-type",
    "flwr-component-name",
    "flwr-package-name",
    "flwr-package-version",
    _PUBLIC_KEY_HEADER,
    "flwr-signature",
    "flwr-timestamp",
)
_RESPONSE_HEADERS = ("content-type", "flwr-version-incompatibility-message")
_BODY_SECONDS = 600.0
_CONNECTIONS = 128
# SuperLink drops a connection that was idle for five seconds; one that is dropped just as a
# call goes out on it is an error, so the gateway lets go first.
_IDLE_SECONDS = 3.0


@dataclass(frozen=True)
class Doors:
    """What the gateway asks others.

    Attributes:
        superlink: host:port of SuperLink at this moment.
        admits: whether a site's public key (PEM) may come in.
        max_message: the largest body that is let through, in bytes.
    """

    superlink: Callable[[], str]
    admits: Callable[[bytes], Awaitable[bool]]
    max_message: int


def create_app(doors: Doors, client: httpx.AsyncClient) -> Starlette:
    """The gateway as an ASGI app.

    Args:
        doors: what it asks others.
        client: the connections to SuperLink (`superlink_client`).
    """
    routes = [
        Route(f"/v1/fleet/{name}", _fleet(name, doors, client), methods=["POST"])
        for name in sorted(FLEET_ROUTES)
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _answer_error})
    app.router.redirect_slashes = False
    return app


def superlink_client(ca: Path) -> httpx.AsyncClient:
    """Connections to SuperLink, kept open, checked against the coordinator's CA."""
    return httpx.AsyncClient(
        verify=ssl.create_default_context(cafile=ca),
        trust_env=False,
        timeout=httpx.Timeout(60.0, connect=5.0, pool=30.0),
        limits=httpx.Limits(
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_CONNECTIONS,
            keepalive_expiry=_IDLE_SECONDS,
        ),
    )


def _fleet(
    name: str, doors: Doors, client: httpx.AsyncClient
) -> Callable[[Request], Awaitable[Response]]:
    async def forward(request: Request) -> Response:
        try:
            admitted = await doors.admits(_public_key(request))
        except FedpactError as error:
            log.error("who may come in cannot be read: %s", error)  # noqa: TRY400
            raise _unavailable() from error
        if not admitted:
            raise HTTPException(403, "This site has not joined, or its access was revoked.")
        body = await _body(request, doors.max_message)
        headers = {
            key: value for key in _REQUEST_HEADERS if (value := request.headers.get(key))
        }
        # The path is built from our own name for it, never from what was asked for.
        url = f"https://{doors.superlink()}/v1/fleet/{name}"
        try:
            answer = await client.post(
                url, content=body, headers={**headers, "accept-encoding": "identity"}
            )
        except httpx.TransportError as error:
            log.warning("SuperLink is away: %s", error or type(error).__name__)
            raise _unavailable() from error
        passed = {k: v for k in _RESPONSE_HEADERS if (v := answer.headers.get(k))}
        return Response(answer.content, answer.status_code, passed)

    return forward


def _unavailable() -> HTTPException:
    return HTTPException(503, "The coordinator is not ready; try again.", {"retry-after": "1"})


def _public_key(request: Request) -> bytes:
    try:
        return base64.b64decode(request.headers.get(_PUBLIC_KEY_HEADER, ""), validate=True)
    except (binascii.Error, ValueError):
        return b""


async def _body(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, in bounded time."""
    too_large = HTTPException(413, f"The body is larger than {limit} bytes.")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise HTTPException(408, "The body took too long.") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "The connection broke.") from error
    return b"".join(parts)


async def _answer_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - for mypy: it is registered for these
    if error.status_code in {404, 405}:
        # Which paths there are is nobody's business: a wrong method is not told apart.
        return JSONResponse({"detail": "Not Found"}, 404, {"connection": "close"})
    headers = dict(error.headers or {})
    if error.status_code != 503:  # noqa: PLR2004 - there the whole body has been read
        headers["connection"] = "close"
    return JSONResponse({"detail": error.detail}, error.status_code, headers)
