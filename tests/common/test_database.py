"""Databases are opened, brought up to date, and refused in a sentence."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from fedpact.client.home import MIGRATIONS as CLIENT
from fedpact.common.database import open_database, sqlite_url
from fedpact.common.errors import StorageError
from fedpact.server.home import MIGRATIONS as SERVER

ROOMS = pytest.mark.parametrize("migrations", [CLIENT, SERVER], ids=["client", "server"])


@ROOMS
def test_a_new_database_gets_its_tables_and_an_old_one_keeps_its_rows(database_url, migrations):
    engine = open_database(database_url, migrations)
    tables = set(inspect(engine).get_table_names())
    assert len(tables) > 2
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (x INTEGER)"))
        connection.execute(text("INSERT INTO kept VALUES (1)"))
    engine.dispose()
    again = open_database(database_url, migrations)
    assert set(inspect(again).get_table_names()) == tables | {"kept"}
    with again.connect() as connection:
        assert connection.execute(text("SELECT x FROM kept")).scalar() == 1
    again.dispose()


@ROOMS
def test_a_database_of_a_newer_fedpact_is_refused_and_left_alone(database_url, migrations):
    engine = open_database(database_url, migrations)
    (table,) = (name for name in inspect(engine).get_table_names() if "version" in name)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET version_num = '9999'"))  # noqa: S608
    with pytest.raises(StorageError, match="of another fedpact") as raised:
        open_database(database_url, migrations)
    assert raised.value.advice == "Update fedpact."
    with engine.connect() as connection:
        kept = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()  # noqa: S608
    assert kept == "9999"
    engine.dispose()


@pytest.mark.parametrize("migrations", [CLIENT, SERVER])
def test_threads_open_databases_at_once(tmp_path, migrations):
    def opened(number: int) -> bool:
        engine = open_database(sqlite_url(tmp_path / f"{number}.db"), migrations)
        with engine.connect() as connection:
            found = bool(inspect(connection).get_table_names())
        engine.dispose()
        return found

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(opened, range(24)))


def test_what_sqlite_commits_survives_a_power_cut(tmp_path):
    engine = open_database(sqlite_url(tmp_path / "fedpact.db"), SERVER)
    with engine.connect() as connection:

        def pragma(name):
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2  # FULL
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") >= 10_000
    engine.dispose()


def test_the_folder_of_a_sqlite_file_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "100% mine.db"
    open_database(sqlite_url(path), SERVER).dispose()
    assert path.exists()


@pytest.mark.parametrize("place", ["a file for a folder", "a folder for a file"])
def test_a_place_that_cannot_be_written_is_said(tmp_path, place):
    path = tmp_path / "there" / "fedpact.db"
    if place == "a file for a folder":
        (tmp_path / "there").touch()
    else:
        path.mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be written"):
        open_database(sqlite_url(path), SERVER)


def test_an_unwritable_folder_is_said(tmp_path):
    folder = Path("/proc/self/fdinfo")  # nobody can make a file here, not even root
    if not folder.is_dir():
        pytest.skip("there is no /proc")
    with pytest.raises(StorageError, match="cannot be written"):
        open_database(sqlite_url(folder / "fedpact.db"), SERVER)


def test_a_damaged_file_is_said_and_left_as_it_is(tmp_path):
    path = tmp_path / "fedpact.db"
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(StorageError, match="not a database"):
        open_database(sqlite_url(path), SERVER)
    assert path.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize(
    "url", ["", "nonsense", "oracle+nothing://x", "postgresql+nodriver://localhost/x"]
)
def test_what_is_no_url_is_said(url):
    with pytest.raises(StorageError, match="not a database that can be used"):
        open_database(url, SERVER)


def test_a_server_that_is_away_is_said():
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match="cannot be written"):
        open_database("postgresql+psycopg://x@127.0.0.1:1/x", SERVER)
