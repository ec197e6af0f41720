"""The site's folder: where things are, for the owner alone, and whole or not at all."""

import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedpact.client.home import ClientHome
from fedpact.client.tables import Base
from fedpact.common.errors import StorageError
from fedpact.common.private_files import write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_in_one_folder(tmp_path):
    home = ClientHome(tmp_path / "site")
    assert home.database_url == f"sqlite:///{tmp_path}/site/fedpact.db"
    inside = (
        home.private_key,
        home.public_key,
        home.ca,
        home.site,
        home.policy,
        home.cache,
        home.outbox,
    )
    assert [path.name for path in inside] == [
        "node.key",
        "node.pub",
        "ca.pem",
        "site.toml",
        "policy.toml",
        "cache",
        "outbox",
    ]
    assert {path.parent for path in inside} == {home.folder}


def test_the_environment_names_folder_and_database(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDPACT_CLIENT_HOME", raising=False)
    monkeypatch.delenv("FEDPACT_CLIENT_DATABASE", raising=False)
    assert ClientHome.default().folder == Path("~/.fedpact/client").expanduser()
    monkeypatch.setenv("FEDPACT_CLIENT_HOME", str(tmp_path))
    monkeypatch.setenv("FEDPACT_CLIENT_DATABASE", "postgresql+psycopg://host/name")
    assert ClientHome.default().folder == tmp_path
    assert ClientHome.default().database_url == "postgresql+psycopg://host/name"


def test_only_the_owner_may_read_it(tmp_path):
    home = ClientHome(tmp_path / "site")
    home.open_database()
    assert {mode(folder) for folder in (home.folder, home.cache, home.outbox)} == {0o700}
    assert mode(home.folder / "fedpact.db") == 0o600
    write_private(home.private_key, b"key")
    assert mode(home.private_key) == 0o600


def test_the_migrations_make_the_tables(tmp_path):
    engine = ClientHome(tmp_path / "site").open_database()
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"version_table": "fedpact_client_version", "compare_type": True},
        )
        assert compare_metadata(context, Base.metadata) == []


def test_a_database_is_opened_again(tmp_path):
    home = ClientHome(tmp_path / "site")
    home.open_database().dispose()
    home.open_database().dispose()


def test_a_database_of_a_newer_fedpact_is_left_alone(tmp_path):
    home = ClientHome(tmp_path / "site")
    with home.open_database().begin() as connection:
        connection.exec_driver_sql("UPDATE fedpact_client_version SET version_num = '9999'")
    with pytest.raises(StorageError, match="another fedpact"):
        home.open_database()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        ClientHome(tmp_path / "file" / "site").open_database()
