"""The control plane as its callers meet it: real gRPC over real TLS, SuperLink a list."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpact.common import certificates, errors, possession
from fedpact.common.errors import AddressError, FedpactError, TrustError, WireError
from fedpact.common.identity import (
    Role,
    new_signing_key,
    public_bytes,
)
from fedpact.common.invitation import Invitation, secret_sha256
from fedpact.common.private_files import write_private
from fedpact.common.signed_calls import MAX_MESSAGE, Stamp, dial
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.common.v1 import federation_pb2_grpc as rpc
from fedpact.server import home as homes
from fedpact.server import institutions
from fedpact.server.doorkeeper import Doorkeeper, caller
from fedpact.server.limits import Rate
from fedpact.server.service import Federation
from fedpact.server.tables import transaction
from support.control_plane import ControlPlane, control_plane, new_node_key
from support.processes import wait_for

STATUS = "/fedpact.v1.Federation/Status"
KINDS = [
    errors.UsageError,
    errors.StudyError,
    errors.DataError,
    errors.ModelError,
    errors.WireError,
    errors.BudgetError,
    errors.PolicyError,
    errors.TrustError,
    errors.RunError,
    errors.AuditError,
    errors.TrainingError,
]


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane") / "server") as running:
        yield running


@pytest.fixture(scope="module")
def site(plane):
    return plane.member("A site")


def raw_call(
    plane: ControlPlane, request: bytes, stamp: Stamp, *, timeout: float | None = 5
) -> pb.StatusResponse:
    """Call Status with these very bytes and this stamp."""
    credentials = grpc.ssl_channel_credentials(plane.ca)
    with grpc.secure_channel(plane.address, credentials) as channel:
        call = channel.unary_unary(STATUS, None, pb.StatusResponse.FromString)
        return call(request, timeout=timeout, metadata=stamp.metadata())


def refusal(plane: ControlPlane, *arguments, **named) -> tuple[str, str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        raw_call(plane, *arguments, **named)
    trailing = dict(raised.value.trailing_metadata() or ())
    return raised.value.code().name, raised.value.details(), trailing.get("fedpact-reason", "")


UNAUTHENTICATED = ("UNAUTHENTICATED", "unauthenticated", "")


def test_the_coordinator_says_who_it_is_and_whom_it_takes_the_caller_for(plane, site):
    with plane.calls(site.key) as federation:
        status = federation.Status(pb.StatusRequest())
    assert (status.institution, status.role) == ("A site", "data-holder")
    assert status.coordinator_key == public_bytes(plane.coordinator)
    assert status.flower_version.startswith("1.41.")
    assert abs(datetime.fromisoformat(status.time) - datetime.now(UTC)).total_seconds() < 60


def test_the_coordinator_calls_itself(plane):
    with plane.calls(plane.coordinator) as federation:
        status = federation.Status(pb.StatusRequest())
    assert (status.institution, status.role) == ("coordinator", "coordinator")


def test_fields_that_the_server_does_not_know_are_signed_as_they_travel(plane, site):
    unknown = b"\xfa\x07\x03new" + b"\xf8\x07\x01"  # fields 127 and 127 again, out of order
    assert raw_call(plane, unknown, Stamp.make(site.key, STATUS, unknown)).role == "data-holder"
    assert refusal(plane, unknown, Stamp.make(site.key, STATUS, b"")) == UNAUTHENTICATED


def test_bytes_that_were_changed_on_the_way_are_refused(plane, site):
    assert refusal(plane, b"b", Stamp.make(site.key, STATUS, b"a")) == UNAUTHENTICATED


def test_a_signature_for_another_method_is_refused(plane, site):
    stamp = Stamp.make(site.key, "/fedpact.v1.Federation/Decide", b"")
    assert refusal(plane, b"", stamp) == UNAUTHENTICATED


def test_a_call_comes_once(plane, site):
    stamp = Stamp.make(site.key, STATUS, b"")
    raw_call(plane, b"", stamp)
    assert refusal(plane, b"", stamp) == UNAUTHENTICATED


def test_a_message_that_is_none_is_said_to_be_none(plane, site):
    code, _, reason = refusal(plane, b"\xff", Stamp.make(site.key, STATUS, b"\xff"))
    assert (code, reason) == ("INVALID_ARGUMENT", "wire")


def test_a_call_has_a_deadline_and_not_a_far_one(plane, site):
    for timeout in (None, 3600):
        stamp = Stamp.make(site.key, STATUS, b"")
        assert refusal(plane, b"", stamp, timeout=timeout) == UNAUTHENTICATED


def test_callers_whose_request_never_comes_keep_nobody_out(plane, site):
    """Any known key will do for it, since keys are public: the deadline is what frees us."""
    credentials = grpc.ssl_channel_credentials(plane.ca)
    stamp = Stamp.make(site.key, STATUS, b"").metadata()
    never = threading.Event()

    def silence() -> Iterator[bytes]:
        never.wait()
        yield from ()

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.secure_channel(plane.address, credentials, options) for _ in range(3)]
    calls = [
        channel.stream_stream(STATUS)(silence(), timeout=2, metadata=stamp)
        for channel in channels
        for _ in range(10)
    ]
    try:
        with plane.calls(site.key) as federation:
            assert federation.Status(pb.StatusRequest()).institution == "A site"
        assert {call.code() for call in calls} <= {
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
    finally:
        never.set()
        for channel in channels:
            channel.close()


@pytest.mark.parametrize("seconds", [-121.0, 121.0])
def test_a_clock_that_is_off_is_said_to_whoever_has_proven_itself(tmp_path, seconds):
    def keeper(callers):
        return Doorkeeper(callers, clock=lambda: time.time() + seconds)

    with control_plane(tmp_path / "server", keeper=keeper) as plane:
        member = plane.member("A")
        with (
            plane.calls(member.key) as federation,
            pytest.raises(TrustError, match=r"clock is off: at the coordinator it is 20\d\d-"),
        ):
            federation.Status(pb.StatusRequest())
        stamp = Stamp.make(member.key, STATUS, b"")
        code, _, reason = refusal(plane, b"", stamp)
        assert (code, reason) == ("FAILED_PRECONDITION", "clock")
        assert refusal(plane, b"changed", stamp) == UNAUTHENTICATED


@pytest.mark.parametrize("seconds", [-110.0, 110.0])
def test_a_clock_that_is_a_little_off_does_no_harm(tmp_path, seconds):
    def keeper(callers):
        return Doorkeeper(callers, clock=lambda: time.time() + seconds)

    with control_plane(tmp_path / "server", keeper=keeper) as plane:
        stamp = Stamp.make(plane.member("A").key, STATUS, b"")
        raw_call(plane, b"", stamp)
        assert refusal(plane, b"", stamp) == UNAUTHENTICATED


def test_who_calls_too_often_waits_and_nobody_else_does(tmp_path):
    def keeper(callers):
        return Doorkeeper(callers, rate=Rate(per_second=0.0, burst=3))

    with control_plane(tmp_path / "server", keeper=keeper) as plane:
        often, other = plane.member("often"), plane.member("other")
        with plane.calls(often.key) as federation:
            for _ in range(3):
                federation.Status(pb.StatusRequest())
            with pytest.raises(AddressError, match="Too many calls"):
                federation.Status(pb.StatusRequest())
        with plane.calls(other.key) as federation:
            federation.Status(pb.StatusRequest())


def test_who_cannot_prove_itself_uses_up_nobodys_rate(tmp_path):
    def keeper(callers):
        return Doorkeeper(callers, rate=Rate(per_second=0.0, burst=1))

    with control_plane(tmp_path / "server", keeper=keeper) as plane:
        member = plane.member("A")
        for _ in range(3):
            refusal(plane, b"b", Stamp.make(member.key, STATUS, b"a"))
        raw_call(plane, b"", Stamp.make(member.key, STATUS, b""))


def test_a_message_that_is_too_large_is_refused(plane, site):
    large = b"\x0a" + bytes(MAX_MESSAGE)
    code, *_ = refusal(plane, large, Stamp.make(site.key, STATUS, large))
    assert code == "RESOURCE_EXHAUSTED"


def test_who_was_revoked_is_shut_out_within_two_seconds(plane):
    member = plane.member("leaves")
    with plane.calls(member.key) as federation:
        federation.Status(pb.StatusRequest())
        with transaction(plane.engine) as session:
            institutions.revoke(session, "leaves")

        def is_shut_out() -> bool:
            try:
                federation.Status(pb.StatusRequest())
            except TrustError as error:
                return "does not accept our key" in error.message
            return False

        wait_for(is_shut_out, "the key is refused", within=2)


class Failing(Federation):
    """Raises what it is told to."""

    error: BaseException
    together = threading.Barrier(1)

    def Status(self, request, context):
        raise Failing.error

    def GetTranscript(self, request, context):
        yield pb.TranscriptLines(lines=[caller().institution])
        Failing.together.wait()
        yield pb.TranscriptLines(lines=[caller().institution])
        raise Failing.error


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("failing") / "server"
    with control_plane(folder, make=Failing) as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_what_it_was(failing, kind):
    Failing.error = kind("Die Prüfung schlug fehl: ε.", advice="Nächstes Mal anders.")
    with failing.calls(failing.coordinator) as federation, pytest.raises(kind) as raised:
        federation.Status(pb.StatusRequest())
    assert raised.value.message == "Die Prüfung schlug fehl: ε."
    assert raised.value.advice == "Nächstes Mal anders."


def test_every_kind_of_error_has_a_status(failing):
    hidden = {errors.AddressError, errors.StorageError}
    assert set(FedpactError.__subclasses__()) == {*KINDS, *hidden}


@pytest.mark.parametrize("kind", [errors.AddressError, errors.StorageError])
def test_what_is_wrong_with_the_coordinator_itself_is_not_told(failing, kind):
    Failing.error = kind("/var/lib/secret is full")
    with failing.calls(failing.coordinator) as federation, pytest.raises(kind) as raised:
        federation.Status(pb.StatusRequest())
    assert "secret" not in str(raised.value)


def test_what_only_the_coordinator_should_know_stays_there(failing):
    Failing.error = errors.DataError(
        "/srv/secret is gone.", advice="secret", told="It is gone."
    )
    with failing.calls(failing.coordinator) as federation, pytest.raises(errors.DataError) as e:
        federation.Status(pb.StatusRequest())
    assert str(e.value) == "It is gone."


def test_an_error_that_nobody_expected_tells_nothing(failing, caplog):
    Failing.error = ZeroDivisionError("secret")
    with failing.calls(failing.coordinator) as federation:
        for call in (
            lambda: federation.Status(pb.StatusRequest()),
            lambda: list(federation.GetTranscript(pb.GetTranscriptRequest())),
        ):
            with pytest.raises(WireError) as raised:
                call()
            assert "secret" not in str(raised.value)
    assert "ZeroDivisionError: secret" in caplog.text


def test_a_stream_knows_its_caller_to_its_end_and_ends_in_its_error(failing, monkeypatch):
    Failing.error = errors.RunError("There is no more.")
    monkeypatch.setattr(Failing, "together", threading.Barrier(8))
    keys = {name: failing.member(name).key for name in ("one", "two")}

    def heard(name: str) -> list[str]:
        lines = []
        with failing.calls(keys[name]) as federation, pytest.raises(errors.RunError):
            for answer in federation.GetTranscript(pb.GetTranscriptRequest()):
                lines.extend(answer.lines)
        return lines

    with ThreadPoolExecutor(8) as pool:
        names = [name for name in keys for _ in range(4)]
        assert list(pool.map(heard, names)) == [[name, name] for name in names]


def test_what_a_coordinator_does_not_do_is_said(failing):
    Failing.error = NotImplementedError()
    with (
        failing.calls(failing.coordinator) as federation,
        pytest.raises(WireError, match="does not know this call"),
    ):
        federation.Status(pb.StatusRequest())


def test_health_is_asked_with_a_signed_call(plane, site):
    with plane.channel(site.key) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_another_ca_is_told_nothing(plane, site, tmp_path):
    other = homes.init(tmp_path / "other", "localhost").ca.read_bytes()
    with (
        dial(plane.address, other, site.key, timeout=5) as channel,
        pytest.raises((TrustError, AddressError), match=r"(?i)certificate"),
    ):
        rpc.FederationStub(channel).Status(pb.StatusRequest())


def test_nobody_at_the_address_is_said(plane, site):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        dial(f"localhost:{port}", plane.ca, site.key, timeout=5) as channel,
        pytest.raises(AddressError, match="cannot be reached"),
    ):
        rpc.FederationStub(channel).Status(pb.StatusRequest())


def test_a_port_in_use_is_said_in_a_sentence(plane, tmp_path):
    port = plane.service.port
    with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1:{port}: Address"):
        type(plane.service)(
            Federation(None),
            Doorkeeper(plane.callers),
            ("127.0.0.1", port),
            plane.home.server_certificate,
            plane.home.server_key,
        )


def shown(plane: ControlPlane) -> x509.Certificate:
    """The certificate that the server shows."""
    context = ssl.create_default_context(cafile=plane.home.ca)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("localhost", plane.service.port)) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True))


def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path):
    with control_plane(tmp_path / "server") as plane:
        before = shown(plane)
        # In the middle of a renewal certificate and key do not fit: the old ones stay.
        fitting = plane.home.server_key.read_bytes()
        write_private(plane.home.server_key, certificates.private_pem(certificates.new_key()))
        plane.home.server_certificate.touch()
        assert shown(plane) == before
        write_private(plane.home.server_key, fitting)
        homes.renew(plane.home, "localhost")
        after = shown(plane)
        assert after != before
        assert after == certificates.load_certificate(plane.home.server_certificate)


# Joining


def request(token: str, *, key=None, node_key: bytes | None = None) -> pb.JoinRequest:
    secret, key = Invitation.decode(token).secret, key or new_signing_key()
    node_key = new_node_key() if node_key is None else node_key
    return pb.JoinRequest(
        secret=secret,
        node_key=node_key,
        signing_key=public_bytes(key),
        proof=possession.prove(key, node_key, secret_sha256(secret).encode()),
    )


@pytest.fixture
def fresh(tmp_path) -> Iterator[ControlPlane]:
    """A control plane at which nobody has failed to join yet."""
    with control_plane(tmp_path / "server") as running:
        yield running


def test_who_was_invited_joins_and_may_call_at_once(fresh):
    key, node_key = new_signing_key(), new_node_key()
    with fresh.calls(None) as federation:
        answer = federation.Join(request(fresh.invite("A"), key=key, node_key=node_key))
    assert (answer.institution, answer.sector, answer.role) == ("A", "academia", "data-holder")
    assert fresh.nodes.known == {int(answer.node_id): node_key}
    assert answer.coordinator_key == public_bytes(fresh.coordinator)
    with fresh.calls(key) as federation:
        assert federation.Status(pb.StatusRequest()).institution == "A"


@pytest.mark.parametrize("role", [Role.RESEARCHER, Role.AUDITOR])
def test_who_holds_no_data_has_no_node(fresh, role):
    with fresh.calls(None) as federation:
        with pytest.raises(WireError, match="no node key"):
            federation.Join(request(fresh.invite("A", role)))
        answer = federation.Join(request(fresh.invite("A", role), node_key=b""))
    assert (answer.role, answer.node_id) == (role, "")
    assert not fresh.nodes.known


def test_a_join_may_be_repeated_with_the_same_keys_and_no_others(fresh):
    again = request(fresh.invite("A"))
    other = pb.JoinRequest()
    other.CopyFrom(request(fresh.invite("B")))
    other.secret = again.secret
    with fresh.calls(None) as federation:
        first = federation.Join(again)
        assert federation.Join(again) == first
        with pytest.raises(TrustError, match="proof"):
            federation.Join(other)
        key = new_signing_key()
        other.signing_key = public_bytes(key)
        binding = secret_sha256(again.secret).encode()
        other.proof = possession.prove(key, other.node_key, binding)
        with pytest.raises(TrustError, match="used already"):
            federation.Join(other)


@pytest.mark.parametrize(
    "change",
    [
        {"secret": "unknown"},
        {"proof": b""},
        {"proof": bytes(64)},
        {"signing_key": b"short"},
        {"signing_key": public_bytes(new_signing_key())},
        {"node_key": new_node_key()},
        {"node_key": b"no key"},
        {"node_key": b""},
    ],
)
def test_whatever_of_a_join_is_changed_it_is_refused(fresh, change):
    asked = request(fresh.invite("A"))
    for name, value in change.items():
        setattr(asked, name, value)
    with fresh.calls(None) as federation, pytest.raises(TrustError):
        federation.Join(asked)
    assert not fresh.nodes.known


def test_a_signing_key_is_one_institutions(fresh):
    key = fresh.member("A").key
    with fresh.calls(None) as federation, pytest.raises(TrustError, match="another"):
        federation.Join(request(fresh.invite("B"), key=key))


def test_joining_fails_ten_times_a_minute_at_most(fresh):
    wrong = request(fresh.invite("A"))
    wrong.secret = "wrong"
    with fresh.calls(None) as federation:
        for _ in range(10):
            with pytest.raises(TrustError):
                federation.Join(wrong)
        with pytest.raises(AddressError, match="Too many attempts"):
            federation.Join(wrong)


def test_joins_whose_request_never_comes_keep_nobody_out(fresh):
    """Anybody may begin one: they get few threads, and their deadline ends them."""
    member, never = fresh.member("A"), threading.Event()

    def silence() -> Iterator[bytes]:
        never.wait()
        yield from ()

    credentials = grpc.ssl_channel_credentials(fresh.ca)
    with grpc.secure_channel(fresh.address, credentials) as channel:
        method = channel.stream_stream("/fedpact.v1.Federation/Join")
        calls = [method(silence(), timeout=20) for _ in range(16)]
        wait_for(lambda: sum(call.done() for call in calls) == 12, "all but four are refused")
        with fresh.calls(member.key) as federation:
            assert federation.Status(pb.StatusRequest()).institution == "A"
        assert sum(not call.done() for call in calls) == 4
        never.set()
        for call in calls:
            call.cancel()

        def joins() -> bool:
            try:
                with fresh.calls(None) as federation:
                    return bool(federation.Join(asked).institution)
            except AddressError:
                return False

        asked = request(fresh.invite("B"))
        wait_for(joins, "there is room again")


def test_while_superlink_is_away_joining_says_later_and_uses_nothing_up(fresh):
    asked = request(fresh.invite("A"))
    fresh.nodes.away = True
    with fresh.calls(None) as federation:
        for _ in range(11):  # and it is nobody's failure
            with pytest.raises(AddressError, match="not ready"):
                federation.Join(asked)
        fresh.nodes.away = False
        assert federation.Join(asked).institution == "A"


# Changing keys


def rotation(member, key=None, node_key: bytes | None = None) -> pb.RotateRequest:
    key = key or new_signing_key()
    node_key = new_node_key() if node_key is None else node_key
    return pb.RotateRequest(
        node_key=node_key,
        signing_key=public_bytes(key),
        proof=possession.prove(key, node_key, public_bytes(member)),
    )


def test_new_keys_count_at_once_and_old_ones_no_more(fresh):
    member, key = fresh.member("A"), new_signing_key()
    asked = rotation(member.key, key)
    with fresh.calls(member.key) as federation:
        answer = federation.Rotate(asked)
        with pytest.raises(TrustError, match="does not accept our key"):
            federation.Status(pb.StatusRequest())
    assert fresh.nodes.known == {int(answer.node_id): asked.node_key}
    with fresh.calls(key) as federation:
        assert federation.Status(pb.StatusRequest()).institution == "A"
        # Who did not hear the answer asks again, with the keys that it has by now.
        assert federation.Rotate(rotation(key, key, asked.node_key)) == answer
    assert len(fresh.nodes.known) == 1


def test_keys_are_changed_by_who_holds_both(fresh):
    member, other = fresh.member("A"), fresh.member("B")
    key = new_signing_key()
    stolen = rotation(other.key, key)  # the proof is for another's call
    anothers = rotation(member.key, other.key)
    with fresh.calls(member.key) as federation:
        with pytest.raises(TrustError, match="proof"):
            federation.Rotate(stolen)
        with pytest.raises(TrustError, match="another"):
            federation.Rotate(anothers)
        with pytest.raises(WireError, match="node key"):
            federation.Rotate(rotation(member.key, key, b""))
        federation.Status(pb.StatusRequest())
    assert sorted(fresh.nodes.known.values()) == sorted([member.node_key, other.node_key])


def test_while_superlink_is_away_keys_stay_as_they_are(fresh):
    member = fresh.member("A")
    fresh.nodes.away = True
    with fresh.calls(member.key) as federation:
        with pytest.raises(AddressError, match="not ready"):
            federation.Rotate(rotation(member.key))
        assert federation.Status(pb.StatusRequest()).institution == "A"


def test_an_auditor_changes_its_one_key(fresh):
    member, key = fresh.member("A", Role.AUDITOR), new_signing_key()
    with fresh.calls(member.key) as federation:
        assert federation.Rotate(rotation(member.key, key, b"")).node_id == ""
    with fresh.calls(key) as federation:
        assert federation.Status(pb.StatusRequest()).role == "auditor"
