"""A whole federation of real processes: `fedpact server up` and `fedpact client up`."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path

from sqlalchemy import Engine

from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger, Reservation
from fedpact.common.study_parties import Sector
from fedpact.server import runs
from fedpact.server.home import ServerHome
from fedpact.server.runs import RunView
from fedpact.server.up import READY
from support.network import Host
from support.processes import free_ports, is_alive, wait_for

FEDPACT = (sys.executable, "-m", "fedpact.simulations")
COORDINATOR = "coordinator"
MARK = "FEDPACT_TEST_MARK"
POLICY = 'max_epsilon = 1000\nallow_model_folders = true\napproval = "automatic"\n'
_STOP_SECONDS = 30.0
_COMMAND_SECONDS = 300.0


def fedpact(
    *arguments: str, env: Mapping[str, str] | None = None, through: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is; `through` is a command that execs it."""
    return subprocess.run(
        [*through, *FEDPACT, *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_COMMAND_SECONDS,
        env={**os.environ, **(env or {})},
    )


def must(*arguments: str, through: Sequence[str] = ()) -> str:
    """Run a command that must succeed; what it printed."""
    done = fedpact(*arguments, through=through)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


class Daemon:
    """A process of ours that stays, with its output in a file."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        through: Sequence[str] = (),
    ) -> None:
        self.log = log
        self._start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*through, *FEDPACT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
            )

    @property
    def said(self) -> str:
        """What this process has printed."""
        return self.log.read_bytes()[self._start :].decode(errors="replace")

    def wait_until_it_says(self, text: str) -> None:
        def said() -> bool:
            found = text in self.said
            assert found or self.process.poll() is None, self.said
            return found

        wait_for(said, f"{text!r} in {self.log.name}", within=180.0)

    def kill(self) -> None:
        """SIGKILL: as if the machine had lost its power."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that is ignored; the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return -9


class Federation:
    """A coordinator and sites that have joined it, each in its own folder and the next sector.

    Args:
        folder: where all of their folders are made.
        data: the sites' names, and the file that each has.
        hosts: where `COORDINATOR` and the sites run; who is not named runs right here.
    """

    def __init__(
        self, folder: Path, data: Mapping[str, Path], hosts: Mapping[str, Host] | None = None
    ) -> None:
        self.home = ServerHome(folder / "coordinator")
        self.sites = {n: ClientHome(folder / f"site-{i}") for i, n in enumerate(data)}
        self.daemons: dict[str, Daemon] = {}
        self.mark = uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._env = {MARK: self.mark}
        self._data = dict(data)
        self._hosts = dict(hosts or {})

    def at(self, who: str, *words: str) -> str:
        """Run a command that must succeed where the coordinator or a site is; what it printed."""
        return must(*words, "--home", str(self._home(who)), through=self._through(who))

    def _home(self, who: str) -> Path:
        return (self.home if who == COORDINATOR else self.sites[who]).folder

    def _through(self, who: str) -> Sequence[str]:
        return self._hosts[who].through if who in self._hosts else ()

    def begin(self) -> None:
        """Set up the coordinator, let every site join, start them all."""
        port, service = map(str, free_ports(2))
        words = ["server", "init", "--port", port, "--service-port", service]
        if host := self._hosts.get(COORDINATOR):
            words += ["--host", host.address, "--listen", host.address]
        self.at(COORDINATOR, *words)
        self.start_coordinator()
        for (name, path), sector in zip(self._data.items(), cycle(Sector), strict=False):
            self._join(name, sector, path)
            self.start_site(name)

    def _join(self, name: str, sector: Sector, data: Path) -> None:
        token = self.at(COORDINATOR, "server", "invite", name, "--sector", sector.value)
        self.at(name, "client", "join", token.strip())
        self.at(name, "client", "dataset", "add", "notes", str(data))
        # Many runs are about to spend from it, with a base model in a folder.
        self.sites[name].policy.write_text(POLICY, encoding="utf-8")

    def start_coordinator(self, *more: str) -> Daemon:
        daemon = self._start(COORDINATOR, "server", *more)
        daemon.wait_until_it_says(READY)
        return daemon

    def start_site(self, name: str) -> Daemon:
        return self._start(name, "client")

    def _start(self, who: str, room: str, *more: str) -> Daemon:
        home = self._home(who)
        arguments = (room, "up", "--home", str(home), *more)
        log = self._folder / f"{home.name}.log"
        self.daemons[who] = Daemon(arguments, log, self._env, self._through(who))
        return self.daemons[who]

    def ensure_up(self) -> None:
        """Start again what a test has killed and left dead."""
        if self.daemons[COORDINATOR].process.poll() is not None:
            self.start_coordinator()
        for name in self.sites:
            if self.daemons[name].process.poll() is not None:
                self.start_site(name)

    def online(self) -> set[str]:
        """The sites that are connected, as SuperLink says."""
        listed = self.at(COORDINATOR, "server", "institutions", "--format", "json")
        return {row["name"] for row in json.loads(listed) if row["online"]}

    def standing(self, digest: str) -> dict:
        """How a proposed study stands, as `fedpact run studies` says."""
        listed = json.loads(self.at(COORDINATOR, "run", "studies", "--format", "json"))
        return next(row for row in listed if row["study_digest"].startswith(digest))

    def agree(self, study: Path) -> None:
        """Propose a study and wait until the sites have approved it by themselves."""
        proposed = self.at(COORDINATOR, "run", "propose", str(study), "--format", "json")
        digest = json.loads(proposed)["study_digest"]
        wait_for(lambda: self.standing(digest)["missing"] == [], "all have signed", within=90)

    def start_run(self, study: Path) -> str:
        started = self.at(COORDINATOR, "run", "start", str(study), "--format", "json")
        return json.loads(started)["run"]

    def result(self, run: str) -> dict:
        """Watch a run to its end; its result."""
        return json.loads(self.at(COORDINATOR, "run", "watch", run, "--format", "json"))

    def view(self, run: str) -> RunView:
        with _opened(self.home.open_database()) as engine:
            return runs.view(engine, run)

    def reservations(self, name: str) -> list[Reservation]:
        with _opened(self.sites[name].open_database()) as engine:
            return Ledger(engine).history("notes")

    def spent(self, name: str, run: str, delta: float) -> float:
        with _opened(self.sites[name].open_database()) as engine:
            return Ledger(engine).spent_by_run("notes", run, delta)

    def stop(self) -> None:
        """Stop every process, the sites first."""
        for daemon in reversed(self.daemons.values()):
            daemon.stop()
        end_marked(self.mark)


@contextmanager
def federation(
    folder: Path, data: Mapping[str, Path], hosts: Mapping[str, Host] | None = None
) -> Iterator[Federation]:
    """A federation that is up; at the end every process of it is stopped."""
    made = Federation(folder, data, hosts)
    try:
        made.begin()
        yield made
    finally:
        made.stop()


@contextmanager
def _opened(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    finally:
        engine.dispose()


def marked(mark: str) -> dict[int, str]:
    """Processes that carry a mark in their environment, with their command lines."""
    found = {}
    needle = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(folder.name)
            if needle in (folder / "environ").read_bytes().split(b"\0") and is_alive(pid):
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                found[pid] = line.replace("\0", " ")
    return found


def end_marked(mark: str) -> None:
    """Kill what carries a mark: nothing that a test started outlives it."""
    for pid in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
