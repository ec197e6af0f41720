"""What every test gets: no network but loopback, one thread, a tiny model, databases."""

import os

# Before any library is loaded, so that it holds for this process and all that tests start.
os.environ |= {
    "COLUMNS": "200",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import torch

from support.postgres import private_server, schema_of
from support.tiny_bert import TinyBert, make_tiny_bert

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would reach beyond this machine fails, whatever the network would say."""

    def guarded(name: str) -> None:
        connect = getattr(socket.socket, name)

        def checked(self: socket.socket, address: object) -> object:
            _require_loopback(self, address)
            return connect(self, address)

        monkeypatch.setattr(socket.socket, name, checked)

    guarded("connect")
    guarded("connect_ex")
    lookup = socket.getaddrinfo

    def local_lookup(host: object, *args: object, **kwargs: object) -> object:
        if not _is_local(host) and not _is_address(host):
            pytest.fail(f"a test asked for the address of {host!r}")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local_lookup)


def _require_loopback(connection: socket.socket, address: object) -> None:
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    host = address[0] if isinstance(address, tuple) else address
    if not _is_local(host):
        pytest.fail(f"a test opened a connection to {host!r}")


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in {None, "", "localhost", socket.gethostname()}:
        return True
    if not _is_address(host):
        return False
    return ip_address(str(host)).is_loopback or ip_address(str(host)).is_unspecified


def _is_address(host: object) -> bool:
    try:
        ip_address(str(host))
    except ValueError:
        return False
    return True


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    """A tiny random BERT with its tokeniser; nobody changes it."""
    return make_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def _postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server: the one that the environment names, or one of our own."""
    if url := os.environ.get("FEDPACT_TEST_POSTGRES"):
        yield url
        return
    with private_server(tmp_path_factory.mktemp("postgres")) as url:
        if url is None:
            pytest.skip("FEDPACT_TEST_POSTGRES names no server, and none can be started here")
        yield url


@pytest.fixture
def postgres_url(_postgres_server: str) -> Iterator[str]:
    """The URL of an empty schema on that server."""
    with schema_of(_postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: each test that takes it runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database' / 'fedpact.db'}"
    return request.getfixturevalue("postgres_url")
