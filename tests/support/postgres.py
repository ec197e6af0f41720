"""A PostgreSQL server for tests: in a folder of its own, on a port of loopback."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

from support.processes import free_port

_DEBIAN = Path("/usr/lib/postgresql")


@contextmanager
def private_server(folder: Path) -> Iterator[str | None]:
    """Start a server and stop it at the end; None where that cannot be done.

    PostgreSQL refuses to run as root, so root hands it to Debian's user `postgres`.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError:
        yield None
        return
    programs = _programs()
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if programs is None or (as_user and not _may_become_postgres()):
        yield None
        return
    # A folder of root's is closed to other users, and so is all below it.
    data = folder / "data"
    if as_user:
        data = Path("/var/tmp") / f"fedpact-test-{uuid.uuid4().hex}"  # noqa: S108 - removed below
    data.mkdir(mode=0o700, parents=True)
    if as_user:
        shutil.chown(data, "postgres")
    port, control = free_port(), [*as_user, str(programs / "pg_ctl"), "-D", str(data)]
    initdb = [str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "fedpact"]
    options = (
        f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync=off "
        f"-c unix_socket_directories={data}"
    )
    try:
        _run([*as_user, *initdb, "-E", "UTF8", "--no-sync"])
        _run([*control, "-w", "-l", str(data / "log"), "-o", options, "start"])
        yield f"postgresql+psycopg://fedpact@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*control, "-m", "immediate", "stop"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def schema_of(server: str) -> Iterator[str]:
    """A schema of its own on a server, gone at the end."""
    schema = f"test_{uuid.uuid4().hex}"
    admin = create_engine(server)
    with admin.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"
    finally:
        with admin.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        admin.dispose()


def _programs() -> Path | None:
    """The folder of the newest server that Debian's packages or the PATH have."""
    found = [*sorted(_DEBIAN.glob("*/bin"), key=_release, reverse=True)]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).parent)
    return next((f for f in found if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


def _release(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdecimal() else 0


def _may_become_postgres() -> bool:
    import pwd

    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return False
    return shutil.which("runuser") is not None


def _run(command: list[str]) -> None:
    # A file, not a pipe: the server that pg_ctl leaves behind would keep a pipe open.
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
