"""The hosts that tests of a network stand on: what reaches what, and when not."""

import random
import subprocess
import sys

import pytest

from support.network import Host, Network, missing, network
from support.processes import running, wait_for

_PORT = 9443
# Answers each line with itself.
_SERVER = """
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
"""
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as connection:
    connection.sendall(b"hello\\n")
    assert connection.makefile("rb").readline() == b"hello\\n"
"""
# Says each line that it reads to the server, and what came back.
_TALKER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
answers = connection.makefile("r")
for line in sys.stdin:
    connection.sendall(line.encode())
    print(answers.readline(), end="", flush=True)
"""


def _reaches(source: Host, target: Host) -> bool:
    command = [*source.through, sys.executable, "-c", _CLIENT, target.address, str(_PORT)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_hosts_reach_each_other_unless_one_is_cut_off(tmp_path):
    with network(3, delay_seconds=0.01, loss=0.01) as net:
        server, friend, other = net.hosts
        serve = [*server.through, sys.executable, "-c", _SERVER, server.address, str(_PORT)]
        talk = [*other.through, sys.executable, "-c", _TALKER, server.address, str(_PORT)]
        with running(serve, tmp_path / "server.log"):
            wait_for(lambda: _reaches(friend, server), "the server listens")
            with subprocess.Popen(
                talk, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as talker:
                assert talker.stdin is not None
                assert talker.stdout is not None

                def say(word: str) -> None:
                    talker.stdin.write(f"{word}\n")
                    talker.stdin.flush()

                say("before")
                assert talker.stdout.readline() == "before\n"
                net.cut_off(other)
                assert not _reaches(other, server)
                assert _reaches(friend, server)
                say("meanwhile")
                net.heal()
                # The connection that was open goes on, and nothing of it is lost.
                assert talker.stdout.readline() == "meanwhile\n"
                assert _reaches(other, server)


def test_what_is_lost_is_a_matter_of_chance_and_of_whom_it_is_for():
    a, b = Host("a", "10.77.0.1"), Host("b", "10.77.0.2")
    net, chance = Network([a, b], loss=0.25), random.Random(0)  # noqa: S311 - the same each time
    passed = sum(net.passes(a.address, b.address, chance) for _ in range(4000))
    assert 2800 < passed < 3200
    net.cut_off(a)
    assert not any(net.passes(b.address, a.address, chance) for _ in range(100))
