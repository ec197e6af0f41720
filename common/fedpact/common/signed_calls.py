"""Signed calls: how a caller of the control plane proves who it is, and that it is now.

Each call carries four entries of metadata:

    fedpact-key         the caller's Ed25519 public key, hexadecimal
    fedpact-time        when it was signed, milliseconds since 1970, UTC
    fedpact-nonce       16 random bytes, hexadecimal
    fedpact-signature   over the method's full name, the time, the nonce and the SHA-256 of
                        the request, hexadecimal

The request is hashed as it travels, byte by byte: neither side has to write a message twice
the same way, and fields that one of them does not know are signed too. A stream of requests
(reflection alone has one) is signed as no bytes at all: who opens it is proven, what follows
is TLS's to protect.
"""

import hashlib
import re
import secrets
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import grpc

from fedpact.common import identity
from fedpact.common.errors import TrustError
from fedpact.common.identity import SigningKey
from fedpact.common.invitation import split_address
from fedpact.common.statuses import error_of

TOLERANCE_SECONDS = 120.0
CALL_SECONDS = 30.0
MAX_MESSAGE = 4 << 20
NONCE_BYTES = 16
Metadata = Iterable[tuple[str, str | bytes]]
_FORMS = {
    "fedpact-key": r"[0-9a-f]{64}",
    "fedpact-time": r"[0-9]{1,15}",
    "fedpact-nonce": r"[0-9a-f]{32}",
    "fedpact-signature": r"[0-9a-f]{128}",
}


@dataclass(frozen=True)
class Stamp:
    """What the metadata of a signed call says.

    Attributes:
        key: the caller's Ed25519 public key, 32 bytes.
        moment: when it was signed, milliseconds since 1970.
        nonce: 16 random bytes.
        signature: 64 bytes.
    """

    key: bytes
    moment: int
    nonce: bytes
    signature: bytes

    @classmethod
    def make(cls, key: SigningKey, method: str, request: bytes) -> Self:
        """Sign a call of this moment.

        Args:
            key: the caller's.
            method: its full name, `/fedpact.v1.Federation/Status`.
            request: as it will travel.
        """
        moment, nonce = time.time_ns() // 1_000_000, secrets.token_bytes(NONCE_BYTES)
        signature = identity.sign(key, "call", _content(method, moment, nonce, request))
        return cls(identity.public_bytes(key), moment, nonce, signature)

    @classmethod
    def parse(cls, metadata: Metadata) -> Self:
        """Read the metadata of a call that came in.

        Raises:
            TrustError: an entry is missing, there twice, or not of its form.
        """
        values: dict[str, str] = {}
        for name, value in metadata:
            if name not in _FORMS:
                continue
            if name in values or not isinstance(value, str):
                raise TrustError(f"{name} is there twice, or not text.")
            if not re.fullmatch(_FORMS[name], value, re.ASCII):
                raise TrustError(f"{name} is not of its form.")
            values[name] = value
        if missing := sorted(_FORMS.keys() - values.keys()):
            raise TrustError(f"{', '.join(missing)} is missing.")
        return cls(
            bytes.fromhex(values["fedpact-key"]),
            int(values["fedpact-time"]),
            bytes.fromhex(values["fedpact-nonce"]),
            bytes.fromhex(values["fedpact-signature"]),
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What travels."""
        return (
            ("fedpact-key", self.key.hex()),
            ("fedpact-time", str(self.moment)),
            ("fedpact-nonce", self.nonce.hex()),
            ("fedpact-signature", self.signature.hex()),
        )

    def is_signed(self, method: str, request: bytes) -> bool:
        """Whether the key that it names signed this call.

        Raises:
            TrustError: what it names is no key.
        """
        return identity.is_signed(
            identity.verify_key(self.key),
            "call",
            _content(method, self.moment, self.nonce, request),
            self.signature,
        )


class SignedChannel:
    """A channel whose calls are signed and end in our errors; generated stubs take it.

    Every call has a deadline: the server takes none without.

    Args:
        channel: what the calls go over.
        key: the caller's; None: calls are not signed (Join alone).
        address: host:port, for what errors say.
        timeout: seconds until a call is given up, unless it is given one of its own.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        key: SigningKey | None,
        address: str,
        timeout: float = CALL_SECONDS,
    ) -> None:
        self._channel = channel
        self._key = key
        self._address = address
        self._timeout = timeout

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        """What a stub calls for a method with one answer."""
        inner = self._channel.unary_unary(method, _as_it_is, response_deserializer)

        def call(request: Any, timeout: float | None = None) -> Any:
            raw = request_serializer(request)
            try:
                return inner(raw, timeout or self._timeout, self._stamp(method, raw))
            except grpc.RpcError as error:
                raise error_of(error, self._address) from error

        return call

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Iterator[Any]]:
        """What a stub calls for a method with a stream of answers."""
        inner = self._channel.unary_stream(method, _as_it_is, response_deserializer)

        def call(request: Any, timeout: float | None = None) -> Iterator[Any]:
            raw = request_serializer(request)
            try:
                yield from inner(raw, timeout or self._timeout, self._stamp(method, raw))
            except grpc.RpcError as error:
                raise error_of(error, self._address) from error

        return call

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Iterator[Any]]:
        """What a stub calls for a method with streams both ways."""
        inner = self._channel.stream_stream(method, request_serializer, response_deserializer)

        def call(requests: Iterator[Any], timeout: float | None = None) -> Iterator[Any]:
            try:
                yield from inner(requests, timeout or self._timeout, self._stamp(method, b""))
            except grpc.RpcError as error:
                raise error_of(error, self._address) from error

        return call

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stamp(self, method: str, request: bytes) -> tuple[tuple[str, str], ...]:
        return Stamp.make(self._key, method, request).metadata() if self._key else ()


def dial(
    address: str, ca: bytes, key: SigningKey | None, timeout: float = CALL_SECONDS
) -> SignedChannel:
    """A channel to the control plane; TLS trusts this CA alone, and is up before a word is said.

    It takes the way that `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` name. (gRPC itself heeds
    them in lower case only.)

    Args:
        address: host:port of the service.
        ca: the coordinator's CA certificate, PEM.
        key: the caller's; None for Join.
        timeout: seconds until a call is given up.

    Raises:
        AddressError: the address is none.
    """
    host, _ = split_address(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        way: tuple[str, str | int] = ("grpc.http_proxy", proxy)
    else:
        way = ("grpc.enable_http_proxy", 0)
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        way,
    ]
    credentials = grpc.ssl_channel_credentials(root_certificates=ca)
    return SignedChannel(
        grpc.secure_channel(address, credentials, options), key, address, timeout
    )


def _as_it_is(raw: bytes) -> bytes:
    return raw


def _content(method: str, moment: int, nonce: bytes, request: bytes) -> bytes:
    digest = hashlib.sha256(request).hexdigest()
    return f"{method}\n{moment}\n{nonce.hex()}\n{digest}".encode()
