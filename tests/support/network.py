"""Hosts on one machine: network namespaces, and a router between them that a test controls.

Each host is a network namespace with one TUN device. The router is a thread here that reads
packets from all of them and hands each to the host it is for: late by `delay_seconds`, not at
all with probability `loss`, and not at all between hosts that are cut off. It needs root,
`ip` and /dev/net/tun; `missing()` says which of them is not there.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_MTU = 65_535


def missing() -> str:
    """What a network of hosts lacks on this machine; empty: nothing."""
    if os.geteuid():
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` (Debian's iproute2) is not installed"
    return "" if _TUN.exists() else "there is no /dev/net/tun"


@dataclass(frozen=True)
class Host:
    """One host: a network namespace with an address."""

    namespace: str
    address: str

    @property
    def through(self) -> tuple[str, ...]:
        """What to put before a command so that it runs on this host."""
        return ("ip", "netns", "exec", self.namespace)


@dataclass
class Network:
    """Hosts and the router between them; change `delay_seconds` and `loss` at any time."""

    hosts: Sequence[Host]
    delay_seconds: float = 0.0
    loss: float = 0.0
    _cut: set[str] = field(default_factory=set)

    def cut_off(self, *hosts: Host) -> None:
        """From now on nothing reaches these hosts or comes from them."""
        self._cut |= {host.address for host in hosts}

    def heal(self) -> None:
        """Connect every host again."""
        self._cut = set()

    def passes(self, source: str, target: str, chance: random.Random) -> bool:
        """Whether the router hands a packet on."""
        return not {source, target} & self._cut and chance.random() >= self.loss


@contextmanager
def network(hosts: int, *, delay_seconds: float = 0.0, loss: float = 0.0) -> Iterator[Network]:
    """Make hosts, and take them away at the end."""
    mark = uuid.uuid4().hex[:6]
    made = [Host(f"fedpact-{mark}-{i}", f"10.77.0.{i}") for i in range(1, hosts + 1)]
    net = Network(made, delay_seconds, loss)
    devices: dict[str, int] = {}
    stop = threading.Event()
    router = threading.Thread(target=_route, args=(net, devices, stop), daemon=True)
    try:
        for host in made:
            _ip("netns", "add", host.namespace)
            devices[host.address] = _tun(host)
        router.start()
        yield net
    finally:
        stop.set()
        if router.is_alive():
            router.join()
        for descriptor in devices.values():
            os.close(descriptor)
        for host in made:
            subprocess.run(["ip", "netns", "del", host.namespace], check=False)


def _route(net: Network, devices: dict[str, int], stop: threading.Event) -> None:
    chance = random.Random(0)  # noqa: S311 - the same packets are lost each time
    late: list[tuple[float, int, int, bytes]] = []
    number = 0
    while not stop.is_set():
        rest = min(0.1, max(0.0, late[0][0] - time.monotonic())) if late else 0.1
        for readable in select.select(list(devices.values()), [], [], rest)[0]:
            packet = os.read(readable, _MTU)
            if packet[0] >> 4 != 4:
                continue
            source, target = (".".join(map(str, packet[i : i + 4])) for i in (12, 16))
            if target in devices and net.passes(source, target, chance):
                due = time.monotonic() + net.delay_seconds
                heapq.heappush(late, (due, number := number + 1, devices[target], packet))
        while late and late[0][0] <= time.monotonic():
            _, _, descriptor, packet = heapq.heappop(late)
            os.write(descriptor, packet)


def _tun(host: Host) -> int:
    """A TUN device inside the host's namespace; a thread goes there and does not come back."""
    made: list[int] = []

    def make() -> None:
        with Path(f"/run/netns/{host.namespace}").open() as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        descriptor = os.open(_TUN, os.O_RDWR)
        request = struct.pack("16sH", b"net0", _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        made.append(descriptor)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    inside = (*host.through, "ip")
    for command in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{host.address}/24", "dev", "net0"),
        ("link", "set", "net0", "up"),
    ):
        subprocess.run([*inside, *command], check=True)
    return made[0]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
