"""A real coordinator for tests: `fedpact server up` in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fedpact.client.home import ClientHome
from fedpact.client.join import JoinedSite, join, load_site
from fedpact.common.certificates import fingerprint, load_certificate
from fedpact.common.identity import Role
from fedpact.common.study_parties import Sector
from fedpact.server import home as homes
from fedpact.server import institutions
from fedpact.server.control import Control
from fedpact.server.home import ServerHome
from fedpact.server.tables import transaction
from fedpact.server.up import READY
from support.processes import free_ports, running, wait_for

SERVER = "from fedpact.server.cli import server_app; server_app()"


@dataclass
class Coordinator:
    """A coordinator that is up."""

    home: ServerHome
    process: subprocess.Popen
    log: Path

    @property
    def address(self) -> str:
        return self.home.settings().address

    def invite(
        self,
        name: str,
        *,
        role: Role = Role.DATA_HOLDER,
        fingerprint_: str = "",
        days: float = 1,
    ) -> str:
        engine = self.home.open_database()
        with transaction(engine) as session:
            token = institutions.invite(
                session,
                name,
                Sector.ACADEMIA,
                role=role,
                address=self.address,
                service=self.home.settings().service_address,
                fingerprint=fingerprint_ or fingerprint(load_certificate(self.home.ca)),
                valid_for=timedelta(days=days),
            )
        engine.dispose()
        return token

    def joined(self, name: str, folder: Path, *, role: Role = Role.DATA_HOLDER) -> JoinedSite:
        """An institution that has joined, its folder ready."""
        home = ClientHome(folder)
        join(self.invite(name, role=role), home)
        return load_site(home)

    def control(self) -> Control:
        return Control.of(self.home)


def make_home(folder: Path) -> ServerHome:
    """A coordinator's folder on free ports of loopback."""
    return homes.init(folder, "localhost", *free_ports(2))


@contextmanager
def serving(home: ServerHome, env: Mapping[str, str] | None = None) -> Iterator[Coordinator]:
    """Start a coordinator, wait until it says that it is ready, stop it at the end."""
    log = home.folder / "up.out"
    command = [sys.executable, "-c", SERVER, "up", "--home", str(home.folder)]
    log.touch()
    start = log.stat().st_size
    with running(command, log, env) as process:

        def is_ready() -> bool:
            printed = log.read_bytes()[start:].decode()
            assert process.poll() is None, printed
            return READY in printed

        wait_for(is_ready, "the coordinator is ready", within=120.0)
        yield Coordinator(home, process, log)
