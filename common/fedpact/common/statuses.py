"""How errors travel over gRPC: a status, a word for programs, a sentence for people.

The word is in the trailing metadata `fedpact-reason`: that of the error's class (`study`,
`trust`, …), or one of `clock` (the caller's clock is off), `role` (its role may not call
this) and `rate` (it calls too often). What a person should do next is in `fedpact-advice-bin`.
"""

import re
from collections.abc import Mapping
from typing import Final

import grpc

from fedpact.common.errors import (
    AddressError,
    AuditError,
    BudgetError,
    DataError,
    FedpactError,
    ModelError,
    PolicyError,
    RunError,
    StorageError,
    StudyError,
    TrainingError,
    TrustError,
    UsageError,
    WireError,
)

REASON: Final = "fedpact-reason"
ADVICE: Final = "fedpact-advice-bin"
UNAUTHENTICATED: Final = "unauthenticated"


def _word(kind: type[FedpactError]) -> str:
    return kind.__name__.removesuffix("Error").lower()


_CODES: Mapping[type[FedpactError], grpc.StatusCode] = {
    UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    StudyError: grpc.StatusCode.INVALID_ARGUMENT,
    DataError: grpc.StatusCode.INVALID_ARGUMENT,
    WireError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    BudgetError: grpc.StatusCode.FAILED_PRECONDITION,
    PolicyError: grpc.StatusCode.FAILED_PRECONDITION,
    RunError: grpc.StatusCode.FAILED_PRECONDITION,
    AuditError: grpc.StatusCode.FAILED_PRECONDITION,
    TrainingError: grpc.StatusCode.FAILED_PRECONDITION,
    TrustError: grpc.StatusCode.PERMISSION_DENIED,
    AddressError: grpc.StatusCode.UNAVAILABLE,
    StorageError: grpc.StatusCode.UNAVAILABLE,
}
# What the doorkeeper alone says.
_OWN: Mapping[str, tuple[grpc.StatusCode, type[FedpactError]]] = {
    "clock": (grpc.StatusCode.FAILED_PRECONDITION, TrustError),
    "role": (grpc.StatusCode.PERMISSION_DENIED, TrustError),
    "rate": (grpc.StatusCode.RESOURCE_EXHAUSTED, AddressError),
}
_CLASSES: Mapping[str, type[FedpactError]] = {
    **{_word(kind): kind for kind in _CODES},
    **{word: kind for word, (_, kind) in _OWN.items()},
}
# gRPC gives what TLS found only as text.
_UNTRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED: ([^:]+)|Hostname Verification Check failed"
)
_LATER = "Try again in a minute."


class NotAcceptedError(TrustError):
    """The coordinator does not accept the key that signed a call."""


class Refusal(Exception):  # noqa: N818 - it never leaves the server
    """A call that ends in a status."""

    def __init__(
        self, code: grpc.StatusCode, message: str, reason: str = "", advice: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.advice = advice

    def trailing(self) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata that goes with it."""
        entries: list[tuple[str, str | bytes]] = []
        if self.reason:
            entries.append((REASON, self.reason))
        if self.advice:
            entries.append((ADVICE, self.advice.encode()))
        return tuple(entries)


def refusal_of(error: FedpactError) -> Refusal:
    """The status of an error at the server.

    Of a message that only this machine should know, what may be told goes out. What is wrong
    with the server itself (a full disk, SuperLink away) is its log's business:
    the caller learns that it may try again.
    """
    kind = next((kind for kind in _CODES if isinstance(error, kind)), None)
    if kind is None:
        return Refusal(grpc.StatusCode.INTERNAL, "The coordinator failed.")
    code, reason = _CODES[kind], _word(kind)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Refusal(code, "The coordinator is not ready.", reason, _LATER)
    if error.told:
        return Refusal(code, error.told, reason)
    return Refusal(code, error.message, reason, error.advice)


def reasons() -> list[tuple[str, grpc.StatusCode, type[FedpactError]]]:
    """Every reason: its word, its status, and the error that it becomes at the client."""
    own = [(word, code, kind) for word, (code, kind) in _OWN.items()]
    return own + [(_word(kind), code, kind) for kind, code in _CODES.items()]


def error_of(error: grpc.RpcError, address: str) -> FedpactError:
    """The error that a status means at the client.

    Args:
        error: what gRPC raised.
        address: host:port that was dialled.
    """
    assert isinstance(error, grpc.Call)  # noqa: S101 - for mypy: what a call raises is both
    code, message = error.code(), error.details() or ""
    trailing = dict(error.trailing_metadata() or ())
    advice = trailing.get(ADVICE, b"")
    kind = _CLASSES.get(str(trailing.get(REASON, "")))
    if kind is not None:
        said = advice.decode(errors="replace") if isinstance(advice, bytes) else advice
        return kind(message, advice=said)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return NotAcceptedError(
            f"The coordinator at {address} does not accept our key.",
            advice="It may have been revoked or replaced: ask the coordinator.",
        )
    if found := _UNTRUSTED.search(message):
        return TrustError(
            f"The certificate of {address} is not valid: {found[1] or 'it is for another name'}.",
            advice="Someone may be in between, or the coordinator was set up anew: ask it.",
        )
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return AddressError(
                f"The coordinator at {address} did not answer in time.", advice=_LATER
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return AddressError(
                f"The coordinator at {address} has too much to do, or the message is too large: "
                f"{message}.",
                advice=_LATER,
            )
        case grpc.StatusCode.UNAVAILABLE:
            return AddressError(
                f"The coordinator at {address} cannot be reached: {_cause(message)}.",
                advice="Check the address, the network and HTTPS_PROXY.",
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return WireError(
                f"The coordinator at {address} does not know this call.",
                advice="One side has an older fedpact: update it.",
            )
    return WireError(f"The coordinator at {address} failed: {message or code.name}.")


def _cause(message: str) -> str:
    """The innermost of gRPC's reasons, which stand one in the other."""
    return message.rpartition(": ")[2].strip(" .]")
