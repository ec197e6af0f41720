"""The doorkeeper: what every call of the control plane goes through, before and after.

(1) The metadata is of its form. (2) The key is one of an institution that joined and was not
shut out, or the coordinator's. (3) The call has a deadline, and not a far one: nobody keeps
a thread waiting for a request that never comes. (4) The request is signed, as it arrived.
(5) The clock is right within two minutes. (6) The caller does not call too often. (7) The
nonce is new. (8) Its role may call this method.

Up to (4) whatever is wrong ends in the one word "unauthenticated"; so does (7). A caller that
has proven itself is told about its clock, its rate and its role. A nonce is remembered only
once the call has proven itself: nobody fills that memory in another's name. Join alone needs
no key: (3), ten failures a minute from one host, and four at once from all of them.

Afterwards each of our errors becomes a status, and any other is logged and tells nothing.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from fedpact.common.errors import FedpactError, TrustError, WireError
from fedpact.common.signed_calls import TOLERANCE_SECONDS, Stamp
from fedpact.common.statuses import UNAUTHENTICATED, Refusal, refusal_of
from fedpact.server.callers import Caller, Callers
from fedpact.server.limits import Failures, Nonces, Rate
from fedpact.server.roles import OPEN, may_call

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]

log = logging.getLogger(__name__)

LONGEST_SECONDS = 300.0
PER_SECOND, BURST = 20.0, 100.0
_FAILURES_PER_MINUTE = 10
# Joins that may be under way at once: each has a thread, and anybody may begin one.
_JOINS = 4
_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller:
    """Who made the call that is being served.

    Raises:
        LookupError: nobody who is known yet: it is a Join.
    """
    found = _caller.get()
    if found is None:
        raise LookupError("Nobody is known to call.")
    return found


class Doorkeeper(grpc.ServerInterceptor):
    """Lets calls in, or ends them with a status.

    Args:
        callers: whose key is whose.
        clock: seconds since 1970.
        rate: how often one caller may call.
    """

    def __init__(
        self,
        callers: Callers,
        clock: Callable[[], float] = time.time,
        rate: Rate | None = None,
    ) -> None:
        self._callers = callers
        self._clock = clock
        self._rate = rate or Rate(PER_SECOND, BURST)
        self._nonces = Nonces(2 * TOLERANCE_SECONDS)
        self._failures = Failures(_FAILURES_PER_MINUTE)
        self._joins = threading.BoundedSemaphore(_JOINS)

    def intercept_service(
        self,
        continuation: "Callable[[Any], _Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler":
        """Wrap a method; one that does not exist too, so that only who may call learns it.

        Whatever the method takes and gives, it is wrapped as one of streams: so nothing of
        the request is read before the caller is known to exist, and its bytes are ours to
        hash before they are parsed.
        """
        handler = continuation(handler_call_details)
        method = handler_call_details.method

        def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                yield from self._serve(method, handler, requests, context)
            except Refusal as refusal:
                end = refusal
            except FedpactError as error:
                log.warning("%s from %s: %s", method, context.peer(), error)
                end = refusal_of(error)
            except grpc.RpcError:  # the client has gone
                raise
            except Exception:
                log.exception("%s from %s failed", method, context.peer())
                end = Refusal(
                    grpc.StatusCode.INTERNAL, "The coordinator failed; its log says why."
                )
            else:
                return
            context.set_trailing_metadata(end.trailing())
            context.abort(end.code, end.message)

        return grpc.stream_stream_rpc_method_handler(
            serve, None, handler.response_serializer if handler else None
        )

    def _serve(
        self,
        method: str,
        handler: "_Handler | None",
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> Iterator[Any]:
        if method in OPEN and handler is not None:
            yield from self._serve_open(handler, requests, context)
            return
        streams = handler is not None and handler.request_streaming
        found, raw = self._admit(method, requests, context, streams=streams)
        if not may_call(found.role, method):
            log.warning("%s: %s (%s) may not call it", method, found.institution, found.role)
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED, f"A {found.role} may not call this.", "role"
            )
        if handler is None:
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "There is no such call.")
        # A generator of ours runs from its first to its last step in one thread of the pool.
        _caller.set(found)
        yield from _answer(handler, raw, requests, context)

    def _admit(
        self,
        method: str,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        *,
        streams: bool,
    ) -> tuple[Caller, bytes]:
        """Find out who calls, and read the request.

        Raises:
            Refusal: somebody who may not come in, or not now.
            StorageError: the database cannot be read.
        """
        try:
            stamp = Stamp.parse(context.invocation_metadata())
        except TrustError as error:
            raise _stranger(method, context, str(error)) from error
        found = self._callers.find(stamp.key)
        if found is None:
            raise _stranger(method, context, "no such key, or it was revoked")
        who = f"the key of {found.institution}"
        if not _has_deadline(context):
            raise _stranger(method, context, f"{who}, no deadline within {LONGEST_SECONDS} s")
        raw = b"" if streams else next(requests, b"")
        if not stamp.is_signed(method, raw):
            raise _stranger(method, context, f"{who}, a signature of something else")
        now = self._clock()
        if abs(now - stamp.moment / 1000) > TOLERANCE_SECONDS:
            log.warning("%s: the clock of %s is off", method, found.institution)
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "This machine's clock is off: at the coordinator it is "
                f"{datetime.fromtimestamp(now, UTC).isoformat(timespec='seconds')}.",
                "clock",
                "Set the clock, best by NTP.",
            )
        if not self._rate.take(stamp.key):
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "Too many calls.",
                "rate",
                "Try again in a few seconds.",
            )
        if not self._nonces.is_new(stamp.key, stamp.nonce):
            raise _stranger(method, context, f"{who}, a call that was here before")
        return found, raw

    def _serve_open(
        self,
        handler: "_Handler",
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> Iterator[Any]:
        host = _host(context)
        if not _has_deadline(context):
            raise WireError(f"A call has a deadline within {LONGEST_SECONDS:.0f} seconds.")
        too_many = Refusal(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many attempts.", "rate", "Wait a minute."
        )
        if not self._failures.allows(host) or not self._joins.acquire(blocking=False):
            raise too_many
        try:
            _caller.set(None)
            yield from _answer(handler, next(requests, b""), requests, context)
        except (TrustError, WireError, grpc.RpcError):  # the last: its request never came
            self._failures.count(host)
            raise
        finally:
            self._joins.release()


def _answer(
    handler: "_Handler",
    raw: bytes,
    requests: Iterator[bytes],
    context: grpc.ServicerContext,
) -> Iterator[Any]:
    """Call a method as it wants to be called.

    Raises:
        WireError: a request is not a message of its kind.
    """

    def parse(content: bytes) -> Any:
        assert handler.request_deserializer is not None  # noqa: S101 - generated code gives it
        try:
            return handler.request_deserializer(content)
        except DecodeError as error:
            raise WireError("The request cannot be read.") from error

    try:
        if handler.stream_stream is not None:
            yield from handler.stream_stream(map(parse, requests), context)
        elif handler.unary_stream is not None:
            yield from handler.unary_stream(parse(raw), context)
        elif handler.unary_unary is not None:
            yield handler.unary_unary(parse(raw), context)
    except NotImplementedError as error:
        raise Refusal(
            grpc.StatusCode.UNIMPLEMENTED, "This coordinator does not do that yet."
        ) from error


def _stranger(method: str, context: grpc.ServicerContext, why: str) -> Refusal:
    log.warning("%s from %s refused: %s", method, context.peer(), why)
    return Refusal(grpc.StatusCode.UNAUTHENTICATED, UNAUTHENTICATED)


def _has_deadline(context: grpc.ServicerContext) -> bool:
    left = context.time_remaining()
    return left is not None and left <= LONGEST_SECONDS


def _host(context: grpc.ServicerContext) -> str:
    """Where a call comes from, without its port."""
    return context.peer().rpartition(":")[0]
