"""Databases: SQLite by default, PostgreSQL by URL, brought up to date when opened.

SQLite runs in WAL mode with full synchronisation: what a committed transaction says has
survived a power cut. Each room keeps its tables and its migrations; this module only opens.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fedpact.common.errors import StorageError

_BUSY_TIMEOUT_MS = 30_000
# Alembic keeps what it is about in its modules: one upgrade at a time in a process.
_UPGRADING = threading.Lock()


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


def open_database(url: str, migrations: Path, *, durable: bool = True) -> Engine:
    """Open a database and bring its tables to the newest revision.

    Args:
        url: an SQLAlchemy URL, for instance `sqlite:////var/lib/fedpact/fedpact.db` or
            `postgresql+psycopg://user@host/name`.
        migrations: a room's Alembic folder (`env.py` and `versions/`).
        durable: whether what was committed must survive a power cut; a simulation, which
            begins anew after one, saves the time.

    Raises:
        StorageError: it cannot be reached or written, is damaged, or was written by a newer fedpact.
    """
    try:
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", partial(_prepare_sqlite, durable))
            Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
        _upgrade(engine, migrations)
    except (ArgumentError, ImportError) as error:
        raise StorageError(f"{url!r} is not a database that can be used: {error}.") from error
    except (SQLAlchemyError, OSError) as error:
        raise storage_error(error) from error
    return engine


def revisions(engine: Engine, migrations: Path, version_table: str) -> tuple[str, str]:
    """Which revision a database's tables are at, and the newest; nothing is changed.

    Args:
        engine: a database.
        migrations: a room's Alembic folder.
        version_table: where the room's migrations write down how far they are.

    Raises:
        SQLAlchemyError: the database cannot be read.
    """
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": version_table})
        here = context.get_current_revision()
    return here or "", ScriptDirectory(migrations).get_current_head() or ""


def storage_error(error: SQLAlchemyError | OSError) -> StorageError:
    """Say what a database or disk error means."""
    cause = getattr(error, "orig", None) or error
    return StorageError(
        f"The database or disk cannot be written: {cause}.",
        advice="Make space or give access, then start again: nothing that was committed is lost.",
    )


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the operating system says of a disk into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error) from error


def _prepare_sqlite(durable: bool, connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()


def _upgrade(engine: Engine, migrations: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _UPGRADING, engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StorageError(
                f"The database is of another fedpact: {error}.", advice="Update fedpact."
            ) from error
