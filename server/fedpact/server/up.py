"""`fedpact server up`: wires the coordinator together, runs it, and takes it down in order.

(1) One process a folder. (2) The public port, before anything that takes time.
(3) Certificates. (4) The database. (5) The control plane's port. (6) SuperLink. (7) Sites that
SuperLink does not know. (8) What became of the runs. (9) The gateway and the control plane.
From then on SuperLink is started again whenever it ends, with (7) and (8) after it. On SIGTERM
or SIGINT the gateway and the control plane close first, then the runs, then SuperLink.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine

from fedpact.common import folder_lock, scrape
from fedpact.common.errors import FedpactError, TrustError, UsageError
from fedpact.common.private_files import write_private
from fedpact.server import institutions
from fedpact.server.callers import Callers
from fedpact.server.control import Control, Node
from fedpact.server.doorkeeper import Doorkeeper
from fedpact.server.gateway import Doors, create_app, superlink_client
from fedpact.server.home import ServerHome, Serving, load_signing_key, make_folders
from fedpact.server.listener import GatewayServer, bind
from fedpact.server.metrics import ServerMetrics, State
from fedpact.server.renewal import Renewal
from fedpact.server.service import Federation, Plane, Service
from fedpact.server.settings import Settings
from fedpact.server.superlink import SuperLink
from fedpact.server.tables import transaction

log = logging.getLogger(__name__)

READY = "The coordinator is up on"
_KEYS_SECONDS = 1.0
_CERTIFICATE_SECONDS = 5.0
_RESTART_SECONDS = (1.0, 30.0)
_STABLE_SECONDS = 60.0

AfterStart = Callable[[Engine, Control], None]


def up(
    home: ServerHome,
    *,
    notice: Callable[[str], None] = print,
    after_start: AfterStart = lambda _engine, _control: None,
    metrics_port: int | None = None,
) -> None:
    """Run the coordinator until SIGTERM or SIGINT; call it in the main thread.

    Args:
        home: the coordinator's folder.
        notice: told, in one line, when it is ready.
        after_start: called each time that SuperLink has started, before sites can reach it:
            it may say what became of the runs, and go on with those that were interrupted.
        metrics_port: where to serve metrics; None: nowhere.

    Raises:
        UsageError: the folder holds no coordinator, or another process serves it.
        AddressError: the port is in use, or SuperLink does not start.
        TrustError: a certificate is missing or not valid.
        StorageError: the database or the disk cannot be used.
    """
    settings = home.settings()
    with _alone(home), bind(settings.listen, settings.port) as listener:
        Renewal(home, settings.host).check()
        home.check_certificates()
        make_folders(home)
        engine = home.open_database()
        superlink, keys = SuperLink(home), _Keys(engine)
        service = _service(home, settings, engine, superlink, keys)
        coordinator = _Coordinator(
            home, settings, engine, superlink, keys, service, after_start
        )
        coordinator.metrics.show_state(State(home, engine, coordinator.nodes))
        with scrape.serving(coordinator.metrics.registry, metrics_port):
            asyncio.run(coordinator.run(listener, notice))
        engine.dispose()


def _service(
    home: ServerHome, settings: Settings, engine: Engine, superlink: SuperLink, keys: "_Keys"
) -> Service:
    """The control plane, its port taken, not yet serving."""
    signing_key = load_signing_key(home)
    callers = Callers(engine, signing_key)

    def keys_changed() -> None:
        callers.forget()
        keys.forget()

    plane = Plane(
        engine, signing_key, lambda: Control(superlink.address, home.ca), keys_changed
    )
    return Service(
        Federation(plane),
        Doorkeeper(callers),
        (settings.listen, settings.service_port),
        home.server_certificate,
        home.server_key,
    )


@contextmanager
def _alone(home: ServerHome) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets it go however the process ends."""

    def taken() -> UsageError:
        serving = home.serving()
        who = f" (process {serving.pid})" if serving else ""
        return UsageError(
            f"A coordinator is up in {home.folder} already{who}.",
            advice="Stop that one first, or take another --home.",
        )

    with folder_lock.hold(home.lock, taken):
        yield


@dataclass
class _Coordinator:
    """The parts that run, wired together."""

    home: ServerHome
    settings: Settings
    engine: Engine
    superlink: SuperLink
    keys: "_Keys"
    service: Service
    after_start: AfterStart
    metrics: ServerMetrics = field(default_factory=ServerMetrics)

    def nodes(self) -> list[Node]:
        """The sites that SuperLink knows at this moment."""
        with Control(self.superlink.address, self.home.ca) as control:
            return control.nodes()

    async def run(self, listener: socket.socket, notice: Callable[[str], None]) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        stopping = asyncio.create_task(stop.wait())
        try:
            starting = asyncio.create_task(self._start())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                return
            await starting
            await self._serve(listener, notice, stopping)
        finally:
            self.home.serving_file.unlink(missing_ok=True)
            await asyncio.to_thread(self.service.stop)
            await self.superlink.stop()
            log.info("stopped")

    async def _serve(
        self,
        listener: socket.socket,
        notice: Callable[[str], None],
        stopping: "asyncio.Task[bool]",
    ) -> None:
        """Open gateway and control plane, and keep SuperLink up behind them."""
        doors = Doors(
            superlink=lambda: self.superlink.address,
            admits=self.keys.admits,
            max_message=self.settings.max_message,
        )
        async with superlink_client(self.home.ca) as client:
            gateway = GatewayServer(
                self.metrics.counted(create_app(doors, client)),
                self.home.server_certificate,
                self.home.server_key,
            )
            serving = asyncio.create_task(gateway.serve(sockets=[listener]))
            watching = asyncio.create_task(self._keep_up())
            renewing = asyncio.create_task(self._keep_valid(gateway))
            self.service.start()
            notice(
                f"{READY} {self.settings.address}, "
                f"its control plane on {self.settings.service_address}"
            )
            await asyncio.wait(
                {serving, watching, renewing, stopping}, return_when=asyncio.FIRST_COMPLETED
            )
            log.info("stopping")
            gateway.should_exit = True
            await asyncio.gather(serving, asyncio.to_thread(self.service.stop))
            for task in (watching, renewing):
                task.cancel()
                if task.done() and not task.cancelled():
                    task.result()

    async def _keep_valid(self, gateway: GatewayServer) -> None:
        """Renew the certificate when it is due; the control plane takes it by itself."""
        renewal = Renewal(self.home, self.settings.host)
        while True:
            try:
                await asyncio.to_thread(renewal.check)
            except TrustError as error:
                log.warning("the server's certificate: %s", error)
            gateway.take_renewed()
            await asyncio.sleep(_CERTIFICATE_SECONDS)

    async def _start(self) -> None:
        """Start SuperLink and tell it, and the runs, what they need to know."""
        await self.superlink.start()
        try:
            await asyncio.to_thread(self._after_start)
        except FedpactError:
            # Half a start is none: it is tried again as a whole.
            await self.superlink.stop()
            raise
        serving = Serving(
            pid=os.getpid(),
            address=self.settings.address,
            service=self.settings.service_address,
            superlink=self.superlink.address,
            superlink_pid=self.superlink.pid,
        )
        write_private(self.home.serving_file, serving.model_dump_json().encode())

    def _after_start(self) -> None:
        with Control(self.superlink.address, self.home.ca) as control:
            nodes = [node for node in control.nodes() if node.is_registered]
            known = {node.public_key: node.node_id for node in nodes}
            with transaction(self.engine) as session:
                missing = institutions.register_missing(session, known, control.register_node)
                joined = institutions.joined_keys(session)
            for node in nodes:
                if node.public_key not in joined:
                    control.unregister_node(node.node_id)
            if missing:
                log.warning("SuperLink had forgotten %s", ", ".join(missing))
            self.after_start(self.engine, control)

    async def _keep_up(self) -> None:
        """Start SuperLink again whenever it ends."""
        rest = _RESTART_SECONDS[0]
        while True:
            since = time.monotonic()
            code = await self.superlink.wait()
            if time.monotonic() - since > _STABLE_SECONDS:
                rest = _RESTART_SECONDS[0]
            log.error("SuperLink ended (code %d); starting it again in %.0f s", code, rest)
            await asyncio.sleep(rest)
            rest = min(2 * rest, _RESTART_SECONDS[1])
            try:
                await self._start()
            except FedpactError as error:
                log.error("%s", error)  # noqa: TRY400 - no traceback for what we raise
            else:
                self.metrics.superlink_restarts.inc()
                log.info("SuperLink is up again")


class _Keys:
    """Public keys that may come in: read again every second, so that revoking works at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys: frozenset[bytes] = frozenset()
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def admits(self, key: bytes) -> bool:
        """Whether a site's key may come in.

        Raises:
            StorageError: the database cannot be read.
        """
        if self._are_old():
            async with self._reading:
                if self._are_old():
                    # Before the query, so that a change during it is seen the next time.
                    self._read_at = time.monotonic()
                    self._keys = await asyncio.to_thread(self._read)
        return key in self._keys

    def forget(self) -> None:
        """Read again at the next question: someone has just joined."""
        self._read_at = -math.inf

    def _are_old(self) -> bool:
        return time.monotonic() - self._read_at > _KEYS_SECONDS

    def _read(self) -> frozenset[bytes]:
        with transaction(self._engine) as session:
            return institutions.joined_keys(session)
