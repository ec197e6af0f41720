"""Stock Flower on this machine: SuperLink and SuperNodes with TLS and node authentication.

Everything is as Flower's documentation starts it, with its own defaults; SuperNodes dial
SuperLink directly. The run is started through the Control API, as `flwr run` does.
"""

import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpact.server import home as homes
from fedpact.server.control import Control
from fedpact.server.fab import bundle

APP = Path(__file__).parent
_START_SECONDS = 120.0
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class StockRun:
    """Seconds until the ServerApp's first round began, and of each round."""

    start_up: float
    rounds: list[float]


def run(folder: Path, data: Sequence[Path], base: Path, rounds: int) -> StockRun:
    """Run the app for some rounds with one SuperNode per data file.

    Args:
        folder: for certificates, keys, logs and Flower's own home.
        data: a CSV file for each site.
        base: the base model's folder.
        rounds: how many.

    Raises:
        RuntimeError: the run ended before its last round; the log is in `folder`.
    """
    began = time.time()
    clock = folder / "clock"
    coordinator = homes.init(folder / "superlink", "127.0.0.1", free_port())
    address = coordinator.settings().address
    with ExitStack() as running:
        superlink = [
            _program("flower-superlink"),
            *("--host", "127.0.0.1", "--port", address.rpartition(":")[2]),
            *("--ssl-ca-certfile", str(coordinator.ca)),
            *("--ssl-certfile", str(coordinator.server_certificate)),
            *("--ssl-keyfile", str(coordinator.server_key)),
            *("--database", str(folder / "superlink.db")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]
        running.enter_context(_group(superlink, folder, "superlink"))
        _wait_for(address, coordinator.ca)
        control = running.enter_context(Control(address, coordinator.ca))
        for number, file in enumerate(data):
            private, public = _key_pair(folder / f"node-{number}.key")
            control.register_node(public)
            supernode = [
                _program("flower-supernode"),
                *("--superlink", address, "--root-certificates", str(coordinator.ca)),
                *("--auth-supernode-private-key", str(private)),
                *("--port", str(free_port())),
                *("--node-config", f'data="{file}"'),
            ]
            running.enter_context(_group(supernode, folder, f"supernode-{number}"))
        number = control.start_run(
            _fab(),
            {"base": str(base), "clock": str(clock), "num-server-rounds": rounds},
        )
        while not control.run_status(number).is_finished:
            time.sleep(1.0)
        state = control.run_status(number)
    ticks = [float(line.split()[1]) for line in clock.read_text(encoding="utf-8").splitlines()]
    if len(ticks) != rounds + 1:
        raise RuntimeError(f"stock Flower's run {state.sub_status}: {state.details} ({folder})")
    return StockRun(ticks[0] - began, [b - a for a, b in itertools.pairwise(ticks)])


def free_port() -> int:
    """A port on loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fab() -> bytes:
    files = [APP / "pyproject.toml", *sorted((APP / "stock_app").glob("*.py"))]
    return bundle({str(f.relative_to(APP)): f.read_text(encoding="utf-8") for f in files})


def _key_pair(path: Path) -> tuple[Path, bytes]:
    """An EC key as `ssh-keygen -t ecdsa -b 384` makes it; its file and its public PEM."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    return path, key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _environment(home: Path) -> Mapping[str, str]:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    direct = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return {**os.environ, **_ENVIRONMENT, **direct, "FLWR_HOME": str(home), "PATH": programs}


@contextmanager
def _group(command: Sequence[str], folder: Path, name: str) -> Iterator[None]:
    """Run a program and what it starts; end them all."""
    home = folder / f"flwr-{name}"
    home.mkdir(parents=True)
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(home),
            start_new_session=True,
        )
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(5.0)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        process.wait()


def _wait_for(address: str, ca: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    context = ssl.create_default_context(cafile=ca)
    with httpx.Client(verify=context, trust_env=False, timeout=2.0) as client:
        while True:
            try:
                if client.get(f"https://{address}/health").is_success:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError("SuperLink does not answer")
            time.sleep(0.1)
