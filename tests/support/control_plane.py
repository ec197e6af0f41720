"""A control plane for tests: real gRPC, real TLS, a real database; only SuperLink is a list."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self

from sqlalchemy import Engine
from starlette.applications import Starlette

from fedpact.client.home import ClientHome
from fedpact.client.join import join
from fedpact.common import certificates
from fedpact.common.errors import AddressError
from fedpact.common.identity import Role, SigningKey, new_signing_key, public_bytes
from fedpact.common.invitation import Invitation
from fedpact.common.signed_calls import SignedChannel, dial
from fedpact.common.study_parties import Sector
from fedpact.common.v1 import federation_pb2_grpc as rpc
from fedpact.server import home as homes
from fedpact.server import institutions
from fedpact.server.callers import Callers
from fedpact.server.doorkeeper import Doorkeeper
from fedpact.server.home import ServerHome
from fedpact.server.institutions import Keys
from fedpact.server.listener import GatewayServer, bind
from fedpact.server.service import Federation, Plane, Service
from fedpact.server.tables import transaction


@dataclass
class Nodes:
    """What SuperLink would know: node keys by number."""

    known: dict[int, bytes] = field(default_factory=dict)
    away: bool = False

    def __enter__(self) -> Self:
        if self.away:
            raise AddressError("SuperLink does not answer at 127.0.0.1:1.")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def register_node(self, public_key: bytes) -> int:
        for number, key in self.known.items():
            if key == public_key:
                return number
        number = max(self.known, default=0) + 1
        self.known[number] = public_key
        return number

    def unregister_node(self, node_id: int) -> None:
        del self.known[node_id]


@dataclass
class Member:
    """An institution that has joined, with its keys."""

    name: str
    key: SigningKey
    node_key: bytes


@dataclass
class ControlPlane:
    """A control plane that serves."""

    home: ServerHome
    engine: Engine
    nodes: Nodes
    callers: Callers
    coordinator: SigningKey
    service: Service

    @property
    def address(self) -> str:
        return f"localhost:{self.service.port}"

    @property
    def ca(self) -> bytes:
        return self.home.ca.read_bytes()

    def invite(self, name: str, role: Role = Role.DATA_HOLDER, gateway: str = "a:1") -> str:
        with transaction(self.engine) as session:
            return institutions.invite(
                session,
                name,
                Sector.ACADEMIA,
                role=role,
                address=gateway,
                service=self.address,
                fingerprint=certificates.fingerprint(
                    certificates.load_certificate(self.home.ca)
                ),
                valid_for=timedelta(days=1),
            )

    def member(self, name: str, role: Role = Role.DATA_HOLDER) -> Member:
        """An institution that has joined."""
        secret = Invitation.decode(self.invite(name, role)).secret
        key = new_signing_key()
        node_key = new_node_key() if role is Role.DATA_HOLDER else b""
        with transaction(self.engine) as session:
            keys = Keys(node_key, public_bytes(key))
            institutions.accept(session, secret, keys, self.nodes.register_node)
        self.callers.forget()
        return Member(name, key, node_key)

    def channel(self, key: SigningKey | None, timeout: float = 10.0) -> SignedChannel:
        return dial(self.address, self.ca, key, timeout)

    @contextmanager
    def calls(self, key: SigningKey | None) -> Iterator[rpc.FederationStub]:
        with self.channel(key) as channel:
            yield rpc.FederationStub(channel)


@contextmanager
def control_plane(
    folder: Path,
    *,
    make: Callable[[Plane], Federation] = Federation,
    keeper: Callable[[Callers], Doorkeeper] = Doorkeeper,
) -> Iterator[ControlPlane]:
    """Serve a control plane on a free port of loopback."""
    home = homes.init(folder, "localhost")
    engine, nodes = home.open_database(), Nodes()
    coordinator = homes.load_signing_key(home)
    callers = Callers(engine, coordinator)
    service = Service(
        make(Plane(engine, coordinator, lambda: nodes, callers.forget)),
        keeper(callers),
        ("127.0.0.1", 0),
        home.server_certificate,
        home.server_key,
    )
    service.start()
    try:
        yield ControlPlane(home, engine, nodes, callers, coordinator, service)
    finally:
        service.stop(0)
        engine.dispose()


def new_node_key() -> bytes:
    return certificates.public_pem(certificates.new_key().public_key())


def joined(
    plane: ControlPlane, home: ClientHome, role: Role = Role.DATA_HOLDER, name: str = "A"
) -> ClientHome:
    """Join with `fedpact client join`'s own code, which looks at the gateway first."""
    with bind("127.0.0.1", 0) as listener:
        address = f"localhost:{listener.getsockname()[1]}"
        chain, key = plane.home.server_certificate, plane.home.server_key
        gateway = GatewayServer(Starlette(), chain, key)
        thread = threading.Thread(target=lambda: asyncio.run(gateway.serve(sockets=[listener])))
        thread.start()
        try:
            join(plane.invite(name, role, address), home)
        finally:
            gateway.should_exit = True
            thread.join()
    return home
