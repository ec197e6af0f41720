"""Who may call what, call by call, as a real server answers.

The methods are read from the server itself, by reflection: a new one cannot be forgotten.
"""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fedpact.common.identity import Role, SigningKey, new_signing_key
from fedpact.common.signed_calls import Stamp
from fedpact.server import institutions
from fedpact.server.roles import ALLOWED, OPEN, may_call
from fedpact.server.service import Federation
from fedpact.server.tables import transaction
from support.control_plane import ControlPlane, control_plane

CLOSED = "/fedpact.v1.Federation/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# What each role may call, said a second time and in another form: by what it may not.
MAY_NOT = {
    Role.DATA_HOLDER: {"Propose", "GetResults", "ListStatements"},
    Role.RESEARCHER: {
        "Decide",
        "ExchangeHeads",
        "GetTranscript",
        "SubmitStatement",
        "ListStatements",
    },
    Role.AUDITOR: {"Propose", "GetResults", "SubmitStatement"},
    Role.COORDINATOR: {"Decide", "Rotate"},
}


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane") / "server") as running:
        yield running


@pytest.fixture(scope="module")
def keys(plane) -> dict[Role, SigningKey]:
    roles = (Role.DATA_HOLDER, Role.RESEARCHER, Role.AUDITOR)
    return {role: plane.member(role, role).key for role in roles} | {
        Role.COORDINATOR: plane.coordinator
    }


def reflect(plane: ControlPlane, key: SigningKey) -> list[str]:
    """Every method of every service that the server says it has, by its full name."""
    with plane.channel(key) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest
        (listed,) = ask(iter([request(list_services="")]))
        methods = []
        for service in listed.list_services_response.service:
            (answer,) = ask(iter([request(file_containing_symbol=service.name)]))
            for raw in answer.file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(raw)
                methods.extend(
                    f"/{file.package}.{described.name}/{method.name}"
                    for described in file.service
                    if f"{file.package}.{described.name}" == service.name
                    for method in described.method
                )
    return sorted(set(methods))


def status(
    plane: ControlPlane, method: str, key: SigningKey | None, request: bytes = b""
) -> tuple[grpc.StatusCode, str]:
    """Call a method with an empty request; its status and reason."""
    credentials = grpc.ssl_channel_credentials(plane.ca)
    metadata = Stamp.make(key, method, request).metadata() if key else ()
    with grpc.secure_channel(plane.address, credentials) as channel:
        call = channel.stream_stream(method)(iter([request]), timeout=2, metadata=metadata)
        try:
            # One answer is enough: Health/Watch has no last one.
            next(call, None)
            call.cancel() if method.endswith("Watch") else list(call)
        except grpc.RpcError as error:
            trailing = dict(error.trailing_metadata() or ())
            return error.code(), trailing.get("fedpact-reason", "") or error.details()
    return grpc.StatusCode.OK, ""


def test_every_method_that_the_server_has_is_in_the_table_and_no_other(plane, keys):
    assert set(reflect(plane, keys[Role.RESEARCHER])) == ALLOWED.keys() | OPEN


@pytest.mark.parametrize("role", Role)
def test_each_role_may_call_what_it_must_and_nothing_else(plane, keys, role):
    for method in reflect(plane, keys[role]):
        code, reason = status(plane, method, keys[role])
        name = method.removeprefix(CLOSED)
        if method in OPEN:
            assert reason != "role"
        elif name in MAY_NOT[role]:
            assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "role"), method
        else:
            assert reason != "role", method
            assert code is not grpc.StatusCode.UNAUTHENTICATED, method


def test_whoever_is_not_known_learns_one_word(plane, keys):
    revoked = plane.member("shut out").key
    with transaction(plane.engine) as session:
        institutions.revoke(session, "shut out")
    plane.callers.forget()
    methods = {*reflect(plane, keys[Role.AUDITOR]), CLOSED + "NoSuchCall", "/no.Such/Service"}
    refused = (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
    for method in sorted(methods - OPEN):
        for key in (None, new_signing_key(), revoked):
            assert status(plane, method, key) == refused, method


def test_joining_needs_a_secret_and_no_key(plane):
    (join,) = OPEN
    assert status(plane, join, None) == (grpc.StatusCode.PERMISSION_DENIED, "trust")


@pytest.mark.parametrize("role", Role)
def test_a_method_that_is_in_no_table_is_refused_to_everyone(plane, keys, role):
    assert not may_call(role, CLOSED + "NoSuchCall")
    refused = (grpc.StatusCode.PERMISSION_DENIED, "role")
    assert status(plane, CLOSED + "NoSuchCall", keys[role]) == refused


def test_a_method_that_the_server_has_and_the_table_has_not_is_refused(tmp_path, monkeypatch):
    """Fails closed: what somebody forgets to write down, nobody may call."""
    monkeypatch.delitem(ALLOWED, CLOSED + "Status")
    with control_plane(tmp_path / "server", make=Federation) as forgetful:
        key = forgetful.member("A").key
        code, reason = status(forgetful, CLOSED + "Status", key)
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "role")
