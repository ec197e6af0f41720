"""The coordinator's folder: what lies where, and the settings in `server.toml`.

server.toml      public host and ports, where to listen, database
fedpact.db       the coordinator's database, unless `database` names another
superlink.db     Flower's own state
artifacts/       adapters
sign.key         the coordinator's own signing key
certificates/    ca.pem, ca.key, server.pem (server and CA certificate), server.key;
                 superlink.pem, superlink.key for loopback
flwr/            FLWR_HOME of SuperLink and of the runs it starts
log/             superlink.log; run-ID.log of each run
up.json          who is serving, and where SuperLink listens; only while it runs
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from fedpact.common.errors import UsageError
from fedpact.common.private_files import private_folder, write_private
from fedpact.server.settings import DEFAULT_PORT, DEFAULT_SERVICE_PORT, Settings, parse_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from fedpact.common.identity import SigningKey
    from fedpact.common.transcript_store import TranscriptStore

MIGRATIONS = Path(__file__).parent / "migrations"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_INIT = "`fedpact server init --host NAME` makes one."


class Serving(BaseModel):
    """`up.json`: the process that serves, and where its SuperLink listens (loopback)."""

    model_config = ConfigDict(frozen=True)

    pid: int
    address: str
    service: str
    superlink: str
    superlink_pid: int


@dataclass(frozen=True)
class ServerHome:
    """The folder and the paths in it."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder.expanduser().absolute())

    @property
    def settings_file(self) -> Path:
        """`server.toml`."""
        return self.folder / "server.toml"

    @property
    def superlink_database(self) -> Path:
        """Flower's own database."""
        return self.folder / "superlink.db"

    @property
    def artifacts(self) -> Path:
        """Where adapters are kept."""
        return self.folder / "artifacts"

    @property
    def releases(self) -> Path:
        """Adapters with their cards, signed."""
        return self.folder / "releases"

    @property
    def certificates(self) -> Path:
        """Where keys and certificates are kept."""
        return self.folder / "certificates"

    @property
    def ca(self) -> Path:
        """The CA certificate."""
        return self.certificates / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The CA's private key: needed only to issue server certificates."""
        return self.certificates / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """The chain that the server shows: its own certificate, then the CA's."""
        return self.certificates / "server.pem"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.certificates / "server.key"

    @property
    def superlink_certificate(self) -> Path:
        """The chain that SuperLink shows on loopback."""
        return self.certificates / "superlink.pem"

    @property
    def superlink_key(self) -> Path:
        """SuperLink's private key."""
        return self.certificates / "superlink.key"

    @property
    def signing_key(self) -> Path:
        """The key that the coordinator signs with (Ed25519)."""
        return self.folder / "sign.key"

    @property
    def flower(self) -> Path:
        """FLWR_HOME."""
        return self.folder / "flwr"

    @property
    def log(self) -> Path:
        """Where logs are written."""
        return self.folder / "log"

    @property
    def lock(self) -> Path:
        """Held by the process that serves."""
        return self.folder / "up.lock"

    @property
    def serving_file(self) -> Path:
        """`up.json`."""
        return self.folder / "up.json"

    def settings(self) -> Settings:
        """Read `server.toml`.

        Raises:
            UsageError: there is none, or it is not valid.
        """
        try:
            values = tomllib.loads(self.settings_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(
                f"There is no coordinator in {self.folder}.", advice=_INIT
            ) from error
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.settings_file} cannot be read: {error}.") from error
        return parse_settings(values, str(self.settings_file))

    def database_url(self) -> str:
        """The database's URL.

        Raises:
            UsageError: `server.toml` is missing or not valid.
        """
        from fedpact.common.database import sqlite_url

        return self.settings().database or sqlite_url(self.folder / "fedpact.db")

    def open_database(self) -> "Engine":
        """Open the coordinator's database and bring it up to date.

        Raises:
            UsageError: `server.toml` is missing or not valid.
            StorageError: the database cannot be reached or written.
        """
        from fedpact.common.database import open_database
        from fedpact.common.transcript_store import with_transcript

        engine = open_database(self.database_url(), MIGRATIONS)
        return with_transcript(engine, self.transcript)

    def transcript(self) -> "TranscriptStore":
        """The coordinator's record of what happened.

        Raises:
            TrustError: its signing key cannot be read.
            StorageError: its signing key cannot be written.
        """
        from fedpact.common.transcript import COORDINATOR
        from fedpact.common.transcript_store import TranscriptStore
        from fedpact.server.tables import TranscriptRow

        return TranscriptStore.of(TranscriptRow, COORDINATOR, load_signing_key(self))

    def serving(self) -> Serving | None:
        """Who is serving from this folder; None if nobody is, or it is only starting.

        What counts is the lock, which the kernel lets go however its holder ends; the file
        may be left over.
        """
        from fedpact.common.folder_lock import is_held

        if not is_held(self.lock):
            return None
        try:
            return Serving.model_validate_json(self.serving_file.read_bytes())
        except (OSError, ValueError):
            return None

    def check_certificates(self) -> None:
        """Check that keys and certificates are there, belong together and are valid now.

        Raises:
            TrustError: they are not; the message says which and why.
        """
        from fedpact.common import certificates

        advice = "`fedpact server init --renew` issues another; institutions need do nothing."
        authority = certificates.load_certificate(self.ca)
        server = certificates.load_certificate(self.server_certificate)
        certificates.check_validity(authority, "The coordinator's CA certificate")
        certificates.check_validity(server, "The server's certificate", advice=advice)
        certificates.check_issued_by(server, authority, "The server's certificate")
        certificates.check_pair(self.server_certificate, self.server_key, advice=advice)


def init(
    folder: Path,
    host: str,
    port: int = DEFAULT_PORT,
    service_port: int = DEFAULT_SERVICE_PORT,
    database: str | None = None,
    listen: str | None = None,
) -> ServerHome:
    """Make a coordinator's folder: settings, a CA of its own, a server certificate.

    Args:
        folder: where; it may exist, but must hold no coordinator.
        host: the name or address by which institutions reach it.
        port: the port that their daemons dial.
        service_port: the port of the control plane.
        database: an SQLAlchemy URL; SQLite in the folder if not given.
        listen: the address to listen on; every one of this machine's if not given, or
            loopback alone if `host` is loopback.

    Raises:
        UsageError: there is a coordinator in the folder already, or a value is not valid.
        StorageError: the folder cannot be written.
    """
    import tomli_w

    from fedpact.common import certificates

    home = ServerHome(folder)
    if home.settings_file.exists():
        raise UsageError(
            f"There is a coordinator in {home.folder} already.",
            advice="Edit its server.toml to change its settings, or take another --home.",
        )
    if listen is None and host in _LOOPBACK:
        listen = "127.0.0.1" if host == "localhost" else host
    values: dict[str, str | int | None] = {
        "host": host,
        "port": port,
        "service_port": service_port,
    }
    values |= {"database": database, "listen": listen}
    given = {key: value for key, value in values.items() if value is not None}
    settings = parse_settings(given, "The settings")
    make_folders(home)
    authority, key = certificates.make_authority(f"fedpact coordinator {settings.host}")
    write_private(home.ca_key, certificates.private_pem(key))
    write_private(home.ca, certificates.certificate_pem(authority))
    renew(home, settings.host)
    load_signing_key(home)
    # Last, so that a folder with a server.toml is a whole one. It may hold a password.
    write_private(home.settings_file, tomli_w.dumps(given).encode())
    return home


def renew(home: ServerHome, host: str, *, days: int | None = None) -> None:
    """Issue another server certificate from the same CA: sites notice nothing.

    Raises:
        TrustError: the CA's certificate or key is missing or has expired.
        StorageError: the folder cannot be written.
    """
    issue(home, host, home.server_certificate, home.server_key, days=days)


def issue(
    home: ServerHome, host: str, chain_file: Path, key_file: Path, *, days: int | None = None
) -> None:
    """Issue a certificate under the coordinator's CA.

    Args:
        home: the coordinator's folder.
        host: the name by which the server is reached, beside loopback's.
        chain_file: gets the certificate and the CA's.
        key_file: gets the private key.
        days: how long it is valid; `certificates.SERVER_DAYS` if not given.

    Raises:
        TrustError: the CA's certificate or key is missing or has expired.
        StorageError: the folder cannot be written.
    """
    from fedpact.common import certificates

    authority = certificates.load_certificate(home.ca)
    certificates.check_validity(authority, "The coordinator's CA certificate")
    authority_key = certificates.load_private_key(home.ca_key)
    server, key = certificates.make_server_certificate(
        authority, authority_key, [host], days=days or certificates.SERVER_DAYS
    )
    chain = certificates.certificate_pem(server) + certificates.certificate_pem(authority)
    write_private(key_file, certificates.private_pem(key))
    write_private(chain_file, chain)


def load_signing_key(home: ServerHome) -> "SigningKey":
    """The coordinator's signing key; a folder that has none yet gets one.

    Raises:
        TrustError: it cannot be read.
        StorageError: it cannot be written.
    """
    from fedpact.common import identity

    if not home.signing_key.exists():
        key = identity.new_signing_key()
        write_private(home.signing_key, identity.private_pem(key))
    return identity.load_signing_key(home.signing_key)


def make_folders(home: ServerHome) -> None:
    """Make the folders that are missing; keys and databases are nobody else's business.

    Raises:
        StorageError: they cannot be made.
    """
    for folder in (home.folder, home.certificates, home.artifacts, home.flower, home.log):
        private_folder(folder)
