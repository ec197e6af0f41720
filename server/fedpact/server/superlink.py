"""SuperLink as a child process: started, watched, stopped, never left behind.

Its one port carries every API that Flower has, and the Control API has no authentication:
so it listens on loopback alone, under TLS, on a port of the moment. Only the gateway and
`fedpact.server.control` speak to it.

SuperLink starts `flower-superexec`, and that one starts a process for each run. When this
process dies, however it dies, the kernel kills SuperLink. SuperExec sees within seconds that
its parent is gone and ends; the kernel then tells the runs (`end_with_parent`).
"""

import asyncio
import ctypes
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx

from fedpact.common.errors import AddressError
from fedpact.server.home import ServerHome
from fedpact.server.renewal import issue_for_superlink

START_SECONDS = 90.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0
_GOODBYE_SECONDS = 1.0
_TASK_POLL_SECONDS = 0.2
_MAX_LOG_BYTES = 16 << 20
_LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
# PR_SET_PDEATHSIG survives execv and leaves no gap: if the parent died before it was set, the
# parent's id is another one by now. (A preexec_fn would run Python between fork and exec.)
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends (Linux).

    Flower watches the parent too, but with a signal that does not wake a sleeping main
    thread: a run that sleeps or waits would outlive its coordinator, and be conducted twice.
    Call it in the main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class SuperLink:
    """Flower's SuperLink, over the state in a coordinator's folder.

    Start it from the main thread: the kernel takes the end of the thread that started a
    child for the end of the parent.
    """

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """host:port on loopback; another one after each start."""
        return f"{_LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        """Its process id, 0 if it was not started."""
        return self._process.pid if self._process else 0

    @property
    def log_file(self) -> Path:
        """What it, SuperExec and the runs print."""
        return self._home.log / "superlink.log"

    async def start(self, *, within: float = START_SECONDS) -> None:
        """Start it and wait until it answers.

        Args:
            within: seconds until it must answer.

        Raises:
            AddressError: it ended, or did not answer in time; the message has the last line
                of its log.
            TrustError: the CA can issue no certificate for it.
        """
        issue_for_superlink(self._home)
        (self._port,) = free_ports(1)
        log_start = _prepare_log(self.log_file)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a fork, from the main thread
                _command(self._home, self._port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(self._home),
                # Ctrl-C reaches the whole foreground group; SuperLink must end after us.
                start_new_session=True,
            )
        deadline = time.monotonic() + within
        context = ssl.create_default_context(cafile=self._home.ca)
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=2.0) as client:
            while not await self._is_healthy(client):
                ended = self._process.poll()
                if ended is None and time.monotonic() < deadline:
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                await self.stop()
                what = "ended at once" if ended is not None else "does not answer"
                last = _last_line(self.log_file, log_start)
                raise AddressError(
                    f"SuperLink {what}: {last}", advice=f"Its log is {self.log_file}."
                )

    async def _is_healthy(self, client: httpx.AsyncClient) -> bool:
        try:
            answer = await client.get(f"https://{self.address}/health")
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    async def wait(self) -> int:
        """Wait until it ends, for whatever reason; its return code."""
        process = self._process
        return await asyncio.to_thread(process.wait) if process else 0

    async def stop(self) -> None:
        """Stop it and everything that it started; all are gone when this returns.

        The runs go first, while SuperLink is there to be told.
        """
        process = self._process
        if process is None:
            return
        offspring = _Offspring(process.pid)
        try:
            await asyncio.to_thread(offspring.end, _STOP_SECONDS)
            # The second one makes it stop waiting for idle connections to say goodbye.
            for number in (signal.SIGTERM, signal.SIGINT):
                process.send_signal(number)
                if await asyncio.to_thread(_has_ended, process, _GOODBYE_SECONDS):
                    break
            else:
                process.kill()
                await asyncio.to_thread(process.wait)
        finally:
            offspring.close()
            self._process = None


def _has_ended(process: "subprocess.Popen[bytes]", within: float) -> bool:
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


class _Offspring:
    """Every process under another one, held by pidfd: a pid may be given to someone else."""

    def __init__(self, ancestor: int) -> None:
        self._descriptors = []
        for pid in _descendants(ancestor):
            with suppress(ProcessLookupError):
                self._descriptors.append(os.pidfd_open(pid))

    def end(self, within: float) -> None:
        """End all of them, children before their parents; kill those that take too long.

        A run whose parent went first would get a second signal while it handles the first,
        and that one ends it before it has told SuperLink.
        """
        deadline = time.monotonic() + within
        for descriptor in reversed(self._descriptors):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
                # A pidfd is readable once its process has ended.
                left = max(0.0, deadline - time.monotonic())
                if select.select([descriptor], [], [], left)[0]:
                    break

    def close(self) -> None:
        """Let go of them."""
        for descriptor in self._descriptors:
            os.close(descriptor)


def _descendants(ancestor: int) -> list[int]:
    """Ids of all processes below one, nearest first, from /proc (empty where there is none)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name stands in parentheses and may contain anything.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [ancestor]
    for pid in found:
        found.extend(children.get(pid, []))
    return found[1:]


def _command(home: ServerHome, port: int) -> list[str]:
    superlink = Path(sys.executable).with_name("flower-superlink")
    if not superlink.exists():
        raise AddressError(
            f"There is no {superlink}.", advice="Install fedpact's requirements again."
        )
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
    options = {
        "--host": _LOOPBACK,
        "--port": str(port),
        "--ssl-ca-certfile": str(home.ca),
        "--ssl-certfile": str(home.superlink_certificate),
        "--ssl-keyfile": str(home.superlink_key),
        "--database": str(home.superlink_database),
        "--isolation": "subprocess",
    }
    return [
        *launch,
        str(superlink),
        *(part for option in options.items() for part in option),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def _environment(home: ServerHome) -> dict[str, str]:
    # Flower's own clients heed HTTPS_PROXY, which would send loopback traffic to the proxy.
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), _LOOPBACK]))
    return {
        **os.environ,
        "FEDPACT_SERVER_HOME": str(home.folder),
        "FLWR_HOME": str(home.flower),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(_TASK_POLL_SECONDS),
        "NO_PROXY": direct,
        "no_proxy": direct,
        # SuperLink finds flower-superexec, and that one flwr-serverapp, by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses at this moment, each another one."""
    with ExitStack() as open_:
        probes = [open_.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((_LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _prepare_log(path: Path) -> int:
    """Set a log aside that has become large; where this start's lines begin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = path.stat().st_size if path.exists() else 0
    if size > _MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
        return 0
    return size


def _last_line(path: Path, start: int) -> str:
    lines = path.read_bytes()[start:].decode(errors="replace").splitlines()
    written = [line.strip() for line in lines if line.strip()]
    return written[-1] if written else "it printed nothing."
