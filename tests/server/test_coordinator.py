"""A real coordinator: gateway, SuperLink, TLS and SQLite, as a site meets it."""

import base64
import socket
import ssl
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.fleet_http_connection import http_request_response
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from typer.testing import CliRunner

from fedpact.client import node
from fedpact.client.home import ClientHome
from fedpact.client.join import JoinedSite, join, load_site
from fedpact.client.rotate import rotate
from fedpact.client.service import Service
from fedpact.common.certificates import public_pem
from fedpact.common.errors import TrustError
from fedpact.common.invitation import Invitation, split_address
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.server import institutions
from fedpact.server.cli import server_app
from fedpact.server.gateway import FLEET_ROUTES
from fedpact.server.tables import transaction
from support.coordinator import Coordinator, make_home, serving
from support.processes import wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory) -> Coordinator:
    with serving(make_home(tmp_path_factory.mktemp("coordinator") / "server")) as running:
        yield running


@pytest.fixture(scope="module")
def client(coordinator) -> httpx.Client:
    context = ssl.create_default_context(cafile=coordinator.home.ca)
    with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
        yield client


def fleet(site: JoinedSite, private_key=None) -> FleetHttpClient:
    """Flower's client as this site; `private_key` may be somebody else's."""
    private, public = site.keys
    return FleetHttpClient.from_server_address(
        site.address,
        insecure=False,
        root_certificates=site.ca,
        interceptors=[NodeAuthHttpInterceptor(private_key or private, public)],
    )


def pull(site: JoinedSite, private_key=None) -> int:
    """Pull messages; the status that comes back."""
    try:
        with fleet(site, private_key) as client:
            client.PullMessages(PullMessagesRequest(node=Node(node_id=site.node_id)))
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def statuses(coordinator: Coordinator) -> dict[int, str]:
    with coordinator.control() as control:
        return {node.node_id: node.status for node in control.nodes()}


def test_nobody_reaches_any_route_of_superlink_but_the_fleets(coordinator, client):
    superlink = f"https://{coordinator.home.serving().superlink}"
    paths = client.get(f"{superlink}/openapi.json").json()["paths"]
    prefixes = {path.rpartition("/")[0] for path in paths}
    assert {"/v1/control", "/v1/fleet", "/v1/runtime"} <= prefixes, "Flower's routes have moved"
    calls = {
        (method.upper(), path) for path, methods in paths.items() for method in methods
    } | {("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/")}
    allowed = {("POST", f"/v1/fleet/{name}") for name in FLEET_ROUTES}
    assert allowed <= calls, "Flower has renamed a Fleet route"
    for method, path in sorted(calls - allowed):
        response = client.request(method, f"https://{coordinator.address}{path}")
        assert response.status_code == 404, (method, path)
    for method, path in sorted(allowed):
        response = client.request(method, f"https://{coordinator.address}{path}")
        assert response.status_code == 403, path


def test_a_site_joins_connects_and_pulls(coordinator, tmp_path):
    site = coordinator.joined("Universität Ärzte", tmp_path)
    assert site.institution == "Universität Ärzte"
    assert statuses(coordinator)[site.node_id] == "registered"
    with http_request_response(
        site.address,
        insecure=False,
        root_certificates=site.ca,
        authentication_keys=site.keys,
        max_retries=0,
    ) as (node_id, receive, *_):
        assert node_id == site.node_id
        assert receive() is None
        assert statuses(coordinator)[site.node_id] == "online"
    assert statuses(coordinator)[site.node_id] == "offline"


def test_only_its_owner_reads_what_joining_left(coordinator, tmp_path):
    coordinator.joined("private", tmp_path / "site")
    for name in ("ca.pem", "node.key", "node.pub", "sign.key", "site.toml"):
        assert (tmp_path / "site" / name).stat().st_mode & 0o777 == 0o600


def test_an_invitation_is_used_once(coordinator, tmp_path):
    token = coordinator.invite("once")
    join(token, ClientHome(tmp_path / "first"))
    with pytest.raises(TrustError, match="used already"):
        join(token, ClientHome(tmp_path / "second"))
    assert not (tmp_path / "second" / "site.toml").exists()


def test_a_join_that_broke_off_may_be_repeated(coordinator, tmp_path):
    home = ClientHome(tmp_path)
    token = coordinator.invite("again")
    join(token, home)
    before = load_site(home)
    home.site.unlink()
    join(token, home)
    assert load_site(home).node_id == before.node_id


def test_an_expired_invitation_is_refused(coordinator, tmp_path):
    with pytest.raises(TrustError, match="expired on"):
        join(coordinator.invite("late", days=-1), ClientHome(tmp_path))


def test_another_fingerprint_ends_the_join_before_anything_is_said(coordinator, tmp_path):
    token = coordinator.invite("misled", fingerprint_="00" * 32)
    with pytest.raises(TrustError, match="another fingerprint"):
        join(token, ClientHome(tmp_path / "site"))
    assert not (tmp_path / "site").exists()
    engine = coordinator.home.open_database()
    with transaction(engine) as session:
        rows = {row.name: row.state for row in institutions.list_institutions(session)}
    assert rows["misled"] == "invited"


def test_whoever_names_a_key_must_hold_it(coordinator, tmp_path):
    site = coordinator.joined("genuine", tmp_path / "a")
    other = coordinator.joined("other", tmp_path / "b")
    assert pull(site) == 200
    assert pull(site, private_key=other.keys[0]) == 401
    assert pull(replace(site, node_id=other.node_id)) == 401


def is_refused(site) -> bool:
    """Whether the control plane does not know the site's key."""
    with Service(site) as service:
        try:
            service.federation.Status(pb.StatusRequest())
        except TrustError as error:
            return "does not accept our key" in error.message
    return False


def test_a_revoked_site_is_shut_out_within_two_seconds(coordinator, tmp_path):
    site = coordinator.joined("revoked", tmp_path)
    assert pull(site) == 200
    with Service(site) as service:
        service.federation.Status(pb.StatusRequest())
    revoked = CliRunner().invoke(
        server_app, ["revoke", "revoked", "--home", str(coordinator.home.folder)]
    )
    assert revoked.exit_code == 0, revoked.output
    # Each port reads for itself who may come in.
    wait_for(lambda: pull(site) == 403 and is_refused(site), "the site is shut out", within=2)
    assert statuses(coordinator)[site.node_id] == "unregistered"


def test_a_daemon_goes_on_with_new_keys_once_they_were_changed(coordinator, tmp_path):
    before = coordinator.joined("rotates", tmp_path)
    home, stop = ClientHome(tmp_path), threading.Event()

    def present() -> node.Coordinator:
        site = load_site(home)
        return node.Coordinator(site.address, site.ca, site.keys, site.node_id)

    daemon = threading.Thread(target=node.serve, args=(present, lambda packet: packet, stop))
    daemon.start()
    try:
        wait_for(lambda: statuses(coordinator)[before.node_id] == "online", "it is online")
        after = rotate(home)
        wait_for(lambda: statuses(coordinator)[after.node_id] == "online", "it is back")
    finally:
        stop.set()
        daemon.join()
    assert pull(before) == 403
    assert statuses(coordinator)[before.node_id] == "unregistered"


def test_a_key_that_was_shut_out_does_not_join_again(coordinator, tmp_path):
    """SuperLink takes no key twice; a new folder has a new one."""
    home = ClientHome(tmp_path / "site")
    site = coordinator.joined("returns", home.folder)
    engine = coordinator.home.open_database()
    with transaction(engine) as session:
        institutions.revoke(session, "returns")
    with coordinator.control() as control:
        control.unregister_node(site.node_id)
        control.unregister_node(site.node_id)
    home.site.unlink()
    token = coordinator.invite("returns")
    with pytest.raises(TrustError, match=r"shut out before\. Join with another folder"):
        join(token, home)
    assert join(token, ClientHome(tmp_path / "another")).institution == "returns"


def test_too_large_a_body_is_refused(coordinator, client, tmp_path):
    site = coordinator.joined("large", tmp_path)
    key = base64.b64encode(public_pem(site.keys[1])).decode()
    response = client.post(
        f"https://{coordinator.address}/v1/fleet/push-object",
        content=bytes((64 << 20) + 1),
        headers={"flwr-public-key": key},
    )
    assert response.status_code == 413


def test_old_tls_is_refused(coordinator):
    context = ssl.create_default_context(cafile=coordinator.home.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(split_address(coordinator.address)) as connection,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(connection, server_hostname="localhost")


def test_the_token_names_both_addresses(coordinator):
    invitation = Invitation.decode(coordinator.invite("named"))
    assert invitation.address == coordinator.address
    serving = coordinator.home.serving()
    assert serving.address == coordinator.address
    assert serving.service == invitation.service


def test_superlink_is_not_to_be_reached_from_outside(coordinator):
    port = split_address(coordinator.home.serving().superlink)[1]
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    addresses = {
        fields[1].rpartition(":")[0]
        for line in listening.splitlines()
        if (fields := line.split())[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    assert addresses == {"0100007F"}
