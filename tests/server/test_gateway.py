"""The gateway as an ASGI app, before a SuperLink that only writes down what reaches it."""

import asyncio
import base64
from dataclasses import replace

import httpx
import pytest

from fedpact.common.errors import StorageError
from fedpact.server.gateway import FLEET_ROUTES, Doors, create_app

KEY = b"-----BEGIN PUBLIC KEY-----"
HEADERS = {
    "flwr-public-key": base64.b64encode(KEY).decode(),
    "content-type": "application/protobuf",
}
LIMIT = 1000


class SuperLink:
    """Answers everything, and remembers it."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answer = httpx.Response(
            200,
            content=b"answer",
            headers={
                "content-type": "application/protobuf",
                "set-cookie": "a=b",
                "server": "uvicorn",
            },
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


async def admits(key: bytes) -> bool:
    return key == KEY


DOORS = Doors(superlink=lambda: "127.0.0.1:1", admits=admits, max_message=LIMIT)


def ask(superlink, method, path, *, doors=DOORS, **request) -> httpx.Response:
    async def go() -> httpx.Response:
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(superlink)) as upstream,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(create_app(doors, upstream)),
                base_url="https://gateway",
            ) as client,
        ):
            return await client.request(method, path, **request)

    return asyncio.run(go())


@pytest.mark.parametrize("name", sorted(FLEET_ROUTES))
def test_fleet_routes_pass(superlink, name):
    response = ask(superlink, "POST", f"/v1/fleet/{name}", headers=HEADERS, content=b"body")
    assert (response.status_code, response.content) == (200, b"answer")
    assert [str(r.url) for r in superlink.requests] == [f"https://127.0.0.1:1/v1/fleet/{name}"]
    assert superlink.requests[0].content == b"body"


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]
)
def test_other_methods_are_not_found(superlink, method):
    for path in ("/v1/fleet/pull-messages", "/"):
        response = ask(superlink, method, path, headers=HEADERS)
        assert response.status_code == 404
        assert "allow" not in response.headers
    assert not superlink.requests


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/pull-messages/",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/fleet/PULL-MESSAGES",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/..%2f..%2fv1/control/start-run",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages;x",
        "/v1/join",
    ],
)
def test_everything_else_is_not_found(superlink, path):
    assert ask(superlink, "POST", path, headers=HEADERS).status_code == 404
    assert not superlink.requests


def test_a_query_goes_no_further(superlink):
    ask(superlink, "POST", "/v1/fleet/get-run?next=/v1/control/start-run", headers=HEADERS)
    assert superlink.requests[0].url.query == b""


def test_only_headers_that_flower_needs_pass_either_way(superlink):
    more = {
        "authorization": "Bearer x",
        "cookie": "c=d",
        "x-forwarded-for": "10.0.0.1",
        "flwr-signature": "s",
        "flwr-timestamp": "t",
        "traceparent": "00-1",
        "transfer-encoding": "chunked",
    }
    response = ask(superlink, "POST", "/v1/fleet/get-run", headers={**HEADERS, **more})
    passed = set(superlink.requests[0].headers) - {"host", "user-agent", "connection"}
    assert passed == {
        "accept",
        "accept-encoding",
        "content-length",
        "content-type",
        "flwr-public-key",
        "flwr-signature",
        "flwr-timestamp",
    }
    assert set(response.headers) == {"content-type", "content-length"}


@pytest.mark.parametrize("key", [None, "", "nonsense!", base64.b64encode(b"other").decode()])
def test_only_keys_that_joined_come_in(superlink, key):
    headers = {} if key is None else {"flwr-public-key": key}
    response = ask(superlink, "POST", "/v1/fleet/pull-messages", headers=headers)
    assert response.status_code == 403
    assert not superlink.requests


def test_the_body_has_a_limit_declared_or_not(superlink):
    fits, exceeds = b"x" * LIMIT, b"x" * (LIMIT + 1)

    async def chunks(content: bytes):
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    for content, status in ((fits, 200), (exceeds, 413)):
        for body in (content, chunks(content)):
            response = ask(
                superlink, "POST", "/v1/fleet/push-object", headers=HEADERS, content=body
            )
            assert response.status_code == status
    assert len(superlink.requests) == 2


@pytest.mark.parametrize("length", ["-1", "1e3", "²"])
def test_a_length_that_is_none_is_refused(superlink, length):
    headers = {**HEADERS, "content-length": length.encode()}
    response = ask(superlink, "POST", "/v1/fleet/push-object", headers=headers, content=b"")
    assert response.status_code == 413


def test_errors_of_superlink_pass_as_they_are(superlink):
    superlink.answer = httpx.Response(401, json={"detail": "Invalid SuperNode authentication"})
    response = ask(superlink, "POST", "/v1/fleet/pull-messages", headers=HEADERS)
    assert (response.status_code, response.json()) == (401, superlink.answer.json())


def test_while_superlink_is_away_the_answer_is_later(superlink):
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    response = ask(away, "POST", "/v1/fleet/pull-messages", headers=HEADERS)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "refused" not in response.text


def test_a_broken_database_lets_nobody_in(superlink):
    async def broken(_key: bytes) -> bool:
        raise StorageError("the disk is full")

    doors = replace(DOORS, admits=broken)
    response = ask(superlink, "POST", "/v1/fleet/get-run", doors=doors, headers=HEADERS)
    assert response.status_code == 503
    assert "disk" not in response.text
    assert not superlink.requests
