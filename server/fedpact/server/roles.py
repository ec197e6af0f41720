"""Who may call what: one table, and what is not in it nobody may call."""

from collections.abc import Mapping
from typing import Final

from fedpact.common.identity import Role

COORDINATOR: Final = "coordinator"
"""The name that the coordinator itself goes by; no institution may have it."""

_HOLDER, _RESEARCHER, _AUDITOR = Role.DATA_HOLDER, Role.RESEARCHER, Role.AUDITOR
_COORDINATOR = Role.COORDINATOR
_EVERYONE = frozenset(Role)
_FEDERATION = "/fedpact.v1.Federation/"

ALLOWED: Final[Mapping[str, frozenset[Role]]] = {
    _FEDERATION + "Status": _EVERYONE,
    _FEDERATION + "Rotate": frozenset({_HOLDER, _RESEARCHER, _AUDITOR}),
    _FEDERATION + "Propose": frozenset({_RESEARCHER, _COORDINATOR}),
    _FEDERATION + "ListStudies": _EVERYONE,
    _FEDERATION + "GetStudy": _EVERYONE,
    _FEDERATION + "Decide": frozenset({_HOLDER, _AUDITOR}),
    _FEDERATION + "GetResults": frozenset({_RESEARCHER, _COORDINATOR}),
    _FEDERATION + "ExchangeHeads": frozenset({_HOLDER, _AUDITOR, _COORDINATOR}),
    _FEDERATION + "GetTranscript": frozenset({_HOLDER, _AUDITOR, _COORDINATOR}),
    _FEDERATION + "SubmitStatement": frozenset({_HOLDER, _COORDINATOR}),
    _FEDERATION + "ListStatements": frozenset({_AUDITOR, _COORDINATOR}),
    "/grpc.health.v1.Health/Check": _EVERYONE,
    "/grpc.health.v1.Health/Watch": _EVERYONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _EVERYONE,
}
OPEN: Final = frozenset({_FEDERATION + "Join"})
"""What needs no key: an invitation's secret proves more."""


def may_call(role: Role, method: str) -> bool:
    """Whether a role may call a method (its full name)."""
    return role in ALLOWED.get(method, frozenset())
