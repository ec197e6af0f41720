"""The joining side against servers that are not what they should be (in threads, real TLS)."""

import asyncio
import logging
import re
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import grpc
import pytest
from starlette.applications import Starlette
from typer.testing import CliRunner

from fedpact.client.cli import client_app
from fedpact.client.home import ClientHome
from fedpact.client.join import join, load_site
from fedpact.common import certificates, possession
from fedpact.common.errors import (
    AddressError,
    FedpactError,
    TrustError,
    UsageError,
    WireError,
)
from fedpact.common.identity import Role, new_signing_key, public_bytes
from fedpact.common.invitation import Invitation, new_secret, secret_sha256, split_address
from fedpact.common.statuses import refusal_of
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.common.v1 import federation_pb2_grpc as rpc
from fedpact.server.listener import GatewayServer, bind

ANSWER = {
    "institution": "A",
    "sector": "academia",
    "role": "data-holder",
    "node_id": "7",
    "coordinator_key": public_bytes(new_signing_key()),
    "version": "1",
}


class Impostor(rpc.FederationServicer):
    """A gateway and a control plane with a CA of their own; Join answers as it is told."""

    def __init__(self, folder: Path, **certificate: int) -> None:
        self.authority = certificates.make_authority("somebody")
        self.issue(folder, self.authority, **certificate)
        self.answer: Callable[[], pb.JoinResponse] = lambda: pb.JoinResponse(**ANSWER)
        self.heard: list[pb.JoinRequest] = []
        self.files = (folder / "server.pem", folder / "server.key")
        self.address = self.service = ""

    def issue(self, folder: Path, authority, **certificate: int) -> None:
        server, key = certificates.make_server_certificate(
            *authority, ["localhost"], **certificate
        )
        chain = (server, self.authority[0])
        (folder / "server.pem").write_bytes(
            b"".join(certificates.certificate_pem(c) for c in chain)
        )
        (folder / "server.key").write_bytes(certificates.private_pem(key))

    def Join(self, request, context):
        self.heard.append(request)
        try:
            return self.answer()
        except FedpactError as error:
            refusal = refusal_of(error)
            context.set_trailing_metadata(refusal.trailing())
            context.abort(refusal.code, refusal.message)

    @contextmanager
    def serving(self) -> Iterator["Impostor"]:
        chain, key = self.files
        plane = grpc.server(ThreadPoolExecutor(2))
        rpc.add_FederationServicer_to_server(self, plane)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
        self.service = f"localhost:{plane.add_secure_port('127.0.0.1:0', credentials)}"
        plane.start()
        with bind("127.0.0.1", 0) as listener:
            self.address = f"localhost:{listener.getsockname()[1]}"
            gateway = GatewayServer(Starlette(), chain, key)
            thread = threading.Thread(
                target=lambda: asyncio.run(gateway.serve(sockets=[listener]))
            )
            thread.start()
            try:
                yield self
            finally:
                gateway.should_exit = True
                thread.join()
                plane.stop(0).wait()

    def token(self, *, fingerprint: str = "", role: str = "data-holder") -> str:
        print_ = fingerprint or certificates.fingerprint(self.authority[0])
        return Invitation(self.address, self.service, print_, "A", role, new_secret()).encode()


def _raising(error: FedpactError) -> Callable[[], pb.JoinResponse]:
    def answer() -> pb.JoinResponse:
        raise error

    return answer


@pytest.fixture
def server(tmp_path) -> Iterator[Impostor]:
    with Impostor(tmp_path).serving() as server:
        yield server


@pytest.fixture
def home(tmp_path) -> ClientHome:
    return ClientHome(tmp_path / "site")


def test_joining_leaves_what_the_site_needs(server, home):
    token = server.token()
    settings = join(token, home)
    site = load_site(home)
    assert (site.institution, site.sector, site.node_id) == ("A", "academia", 7)
    assert site.address == settings.coordinator == server.address
    assert site.ca == certificates.certificate_pem(server.authority[0])
    assert (site.role, site.service) == (Role.DATA_HOLDER, server.service)
    assert public_bytes(site.coordinator_key) == ANSWER["coordinator_key"]
    (heard,) = server.heard
    assert heard.secret == Invitation.decode(token).secret
    assert heard.node_key == certificates.public_pem(site.keys[1])
    assert heard.signing_key == public_bytes(site.signing_key)
    binding = secret_sha256(heard.secret).encode()
    possession.check(heard.signing_key, heard.node_key, binding, heard.proof)


def test_the_next_steps_that_joining_prints_work_as_pasted(server, home):
    arguments = ["join", server.token(), "--home", str(home.folder)]
    joined = CliRunner().invoke(client_app, arguments)
    steps = re.findall("`fedpact client ([^`]*)`", joined.stdout)
    assert steps == [
        f"dataset add NAME FILE --home {home.folder}",
        f"up --home {home.folder}",
    ]


def test_the_log_of_a_site_says_nothing_of_migrations(server, home, caplog, monkeypatch):
    join(server.token(), home)
    monkeypatch.setattr("fedpact.client.node.serve", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (None, "alembic", "httpx"):  # put back after the test
        caplog.set_level(logging.INFO, name)
    served = CliRunner().invoke(client_app, ["up", "--home", str(home.folder)])
    assert served.exit_code == 0, served.output
    names = {record.name for record in caplog.records}
    assert "fedpact.client.up" in names
    assert not [name for name in names if name.startswith(("alembic", "httpx"))]


@pytest.mark.parametrize("role", ["researcher", "auditor"])
def test_who_holds_no_data_joins_with_a_signing_key_alone(server, home, role):
    server.answer = lambda: pb.JoinResponse(**ANSWER | {"role": role, "node_id": ""})
    join(server.token(role=role), home)
    site = load_site(home)
    assert (site.role, site.keys, site.node_id) == (role, None, 0)
    assert server.heard[0].node_key == b""
    assert not home.private_key.exists()


def test_private_keys_are_never_sent(server, home):
    join(server.token(), home)
    site, sent = load_site(home), server.heard[0].SerializeToString()
    number = site.keys[0].private_numbers().private_value.to_bytes(48, "big")
    for private in (number, site.signing_key.private_bytes_raw()):
        assert private not in sent
    for path in (home.private_key, home.signing_key):
        assert path.read_text().splitlines()[1].encode() not in sent


def test_another_ca_hears_nothing(server, home):
    with pytest.raises(TrustError, match="not the coordinator that the token names"):
        join(server.token(fingerprint="ab" * 32), home)
    assert not server.heard
    assert not home.folder.exists()


def test_a_chain_that_only_shows_the_right_ca_is_not_enough(tmp_path, home):
    """Anybody can append the coordinator's CA certificate: it is public."""
    impostor = Impostor(tmp_path)
    impostor.issue(tmp_path, certificates.make_authority("somebody"))
    refused = pytest.raises(TrustError, match="not issued by the coordinator's CA")
    with impostor.serving() as server, refused:
        join(server.token(), home)
    assert not server.heard


def test_an_expired_certificate_is_said_to_be_one(tmp_path, home):
    refused = pytest.raises(TrustError, match="server certificate expired on")
    with Impostor(tmp_path, days=-3).serving() as server, refused:
        join(server.token(), home)
    assert not server.heard


def test_a_site_joins_once(server, home):
    join(server.token(), home)
    with pytest.raises(UsageError, match="has joined localhost"):
        join(server.token(), home)


def test_a_refusal_is_passed_on_with_its_reason(server, home):
    server.answer = _raising(TrustError("This invitation expired."))
    with pytest.raises(TrustError, match=r"^This invitation expired\."):
        join(server.token(), home)
    assert not home.site.exists()


def test_a_coordinator_that_is_not_ready_says_later(server, home):
    server.answer = _raising(AddressError("SuperLink is away."))
    with pytest.raises(AddressError, match="not ready"):
        join(server.token(), home)


@pytest.mark.parametrize(
    "change",
    [
        {"node_id": "x"},
        {"node_id": ""},
        {"node_id": "1" * 21},
        {"coordinator_key": b""},
        {"coordinator_key": bytes(31)},
    ],
)
def test_an_answer_that_is_not_a_coordinators_is_refused(server, home, change):
    server.answer = lambda: pb.JoinResponse(**ANSWER | change)
    with pytest.raises(WireError):
        join(server.token(), home)
    assert not home.site.exists()


@pytest.mark.parametrize(
    "change", [{"institution": "B"}, {"institution": ""}, {"role": "auditor"}, {"role": ""}]
)
def test_an_answer_for_somebody_else_is_refused(server, home, change):
    server.answer = lambda: pb.JoinResponse(**ANSWER | change)
    with pytest.raises(TrustError, match="answered for"):
        join(server.token(), home)
    assert not home.site.exists()


def test_a_second_attempt_uses_the_same_keys(server, home):
    server.answer = _raising(AddressError("SuperLink is away."))
    with pytest.raises(AddressError):
        join(server.token(), home)
    server.answer = lambda: pb.JoinResponse(**ANSWER)
    join(server.token(), home)
    assert len({(heard.node_key, heard.signing_key) for heard in server.heard}) == 1


def test_nobody_at_the_address_is_said(home):
    with bind("127.0.0.1", 0) as listener:
        address = f"localhost:{listener.getsockname()[1]}"
    token = Invitation(address, address, "ab" * 32, "A", "data-holder", new_secret()).encode()
    with pytest.raises(AddressError, match="cannot be reached"):
        join(token, home)


class _Tunnel(socketserver.StreamRequestHandler):
    """The CONNECT method of an HTTP proxy."""

    asked: ClassVar[list[str]] = []

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        self.asked.append(target)
        while self.rfile.readline().strip():
            pass
        host, port = split_address(target)
        with socket.create_connection((host, port)) as upstream:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {self.connection: upstream, upstream: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    if not (data := end.recv(65536)):
                        return
                    ends[end].sendall(data)


def test_joining_goes_through_the_proxy_that_the_environment_names(server, home, monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Tunnel) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        try:
            join(server.token(), home)
        finally:
            proxy.shutdown()
    assert set(_Tunnel.asked) == {server.address, server.service}
    assert load_site(home).institution == "A"


def test_what_no_proxy_names_is_dialled_directly(server, home, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    join(server.token(), home)
    assert load_site(home).institution == "A"


def test_what_was_joined_is_checked_when_it_is_read(server, home):
    with pytest.raises(TrustError, match="has not joined"):
        load_site(home)
    join(server.token(), home)
    home.ca.write_bytes(certificates.certificate_pem(certificates.make_authority("x")[0]))
    with pytest.raises(TrustError, match="not the CA that this site joined"):
        load_site(home)
    home.site.write_text("institution = 1")
    with pytest.raises(TrustError, match="cannot be read"):
        load_site(home)


def test_an_auditor_needs_no_rules_for_data(server, home):
    server.answer = lambda: pb.JoinResponse(**ANSWER | {"role": "auditor", "node_id": ""})
    arguments = ["join", server.token(role="auditor"), "--home", str(home.folder)]
    joined = CliRunner().invoke(client_app, arguments)
    assert "as auditor" in joined.output
    assert not home.policy.exists()
    served = CliRunner().invoke(client_app, ["up", "--home", str(home.folder)])
    assert isinstance(served.exception, TrustError)
    assert "runs no site" in served.exception.message
