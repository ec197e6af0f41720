"""The folder of a site: where everything that an institution's daemon keeps is.

    fedpact.db      the ledger, the data sets and what left (unless another database is named)
    node.key        the node's private key; with node.pub, the public one
    sign.key        the private key that the institution signs with
    ca.pem          the certificate authority of the coordinator, pinned when joining
    site.toml       who we are and whom we joined
    policy.toml     what the institution allows; read here only
    cache/          tokenised records
    outbox/         the last packets that left, for requests that come twice
    runs/           of each run, the adapter last received and what is personal here
    up.lock         held by the daemon while it serves
    status.json     what the daemon says of itself; only while it serves

Only the owner may read any of it: folders are 0700, files 0600.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from fedpact.common import identity
from fedpact.common.database import open_database, sqlite_url
from fedpact.common.errors import TrustError
from fedpact.common.private_files import private_folder
from fedpact.common.transcript_store import TranscriptStore, with_transcript

HOME_VARIABLE = "FEDPACT_CLIENT_HOME"
DATABASE_VARIABLE = "FEDPACT_CLIENT_DATABASE"
MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class ClientHome:
    """The layout of a site's folder.

    Attributes:
        folder: the folder itself.
        database: an SQLAlchemy URL where the database is elsewhere; empty: in the folder.
        durable: whether its database survives a power cut; a simulated site's need not.
    """

    folder: Path
    database: str = ""
    durable: bool = True

    @classmethod
    def default(cls) -> "ClientHome":
        """The folder and database that the environment names, or `~/.fedpact/client`."""
        return cls.at(Path(os.environ.get(HOME_VARIABLE) or "~/.fedpact/client"))

    @classmethod
    def at(cls, folder: Path) -> "ClientHome":
        """A folder, with the database that the environment names, if it names one."""
        return cls(folder.expanduser(), os.environ.get(DATABASE_VARIABLE, ""))

    @property
    def database_url(self) -> str:
        """The URL of the site's database."""
        return self.database or sqlite_url(self.folder / "fedpact.db")

    @property
    def private_key(self) -> Path:
        """The node's private key."""
        return self.folder / "node.key"

    @property
    def public_key(self) -> Path:
        """The node's public key."""
        return self.folder / "node.pub"

    @property
    def signing_key(self) -> Path:
        """The private key that the institution signs with (Ed25519)."""
        return self.folder / "sign.key"

    @property
    def next_private_key(self) -> Path:
        """The node's private key that is about to replace the present one."""
        return self.folder / "node.key.next"

    @property
    def next_signing_key(self) -> Path:
        """The signing key that is about to replace the present one."""
        return self.folder / "sign.key.next"

    @property
    def ca(self) -> Path:
        """The coordinator's certificate authority."""
        return self.folder / "ca.pem"

    @property
    def site(self) -> Path:
        """Who we are and whom we joined."""
        return self.folder / "site.toml"

    @property
    def policy(self) -> Path:
        """What the institution allows."""
        return self.folder / "policy.toml"

    @property
    def cache(self) -> Path:
        """Tokenised records."""
        return self.folder / "cache"

    @property
    def outbox(self) -> Path:
        """The last packets that left."""
        return self.folder / "outbox"

    @property
    def runs(self) -> Path:
        """Of each run, the adapter last received and what is personal here."""
        return self.folder / "runs"

    @property
    def lock(self) -> Path:
        """Held by the daemon that serves."""
        return self.folder / "up.lock"

    @property
    def status(self) -> Path:
        """What the daemon says of itself."""
        return self.folder / "status.json"

    def create(self) -> None:
        """Make the folders, for the owner only; those that exist stay.

        Raises:
            StorageError: they cannot be made.
        """
        for folder in (self.folder, self.cache, self.outbox, self.runs):
            private_folder(folder)

    def open_database(self) -> Engine:
        """Open the site's database and bring its tables up to date.

        Raises:
            StorageError: it cannot be reached, written, or was written by a newer fedpact.
        """
        self.create()
        engine = open_database(self.database_url, MIGRATIONS, durable=self.durable)
        if not self.database:
            # SQLite gives its -wal and -shm files the rights of the main file.
            with contextlib.suppress(OSError):
                (self.folder / "fedpact.db").chmod(0o600)
        return with_transcript(engine, self.transcript)

    def transcript(self) -> TranscriptStore | None:
        """The institution's record of what happened; None while it has not joined anyone.

        Raises:
            TrustError: its signing key cannot be read.
        """
        from fedpact.client.join import read_settings

        if not self.site.exists():
            return None
        return self.transcript_of(read_settings(self).institution)

    def transcript_of(self, institution: str) -> TranscriptStore:
        """The record of what happened, as an institution's of this name."""
        from fedpact.client.tables import TranscriptRow

        return TranscriptStore(TranscriptRow, institution, self._keys)

    def _keys(self) -> list[identity.SigningKey]:
        """The signing key, and while keys are being changed the next one too."""
        keys = [identity.load_signing_key(self.signing_key)]
        with contextlib.suppress(TrustError):  # it lies there only while keys are changed
            keys.append(identity.load_signing_key(self.next_signing_key))
        return keys
