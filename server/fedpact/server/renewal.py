"""Certificates that renew themselves.

The server's certificate is issued anew thirty days before it ends, and whoever serves takes
the new one at the next handshake: nobody restarts anything, and sites notice nothing. That
needs the CA's key in its place; without it, a warning a day says what will happen.

SuperLink cannot change its certificate while it runs. On loopback, where nobody else sees it,
it has one of its own that lasts as long as the CA, made anew whenever it starts.
"""

import logging
from datetime import UTC, datetime, timedelta

from fedpact.common.certificates import load_certificate
from fedpact.common.errors import StorageError, TrustError
from fedpact.server import home as homes
from fedpact.server.home import ServerHome

log = logging.getLogger(__name__)

BEFORE_END = timedelta(days=30)


class Renewal:
    """Renews the server's certificate when it is due; ask it now and then."""

    def __init__(self, home: ServerHome, host: str) -> None:
        self._home = home
        self._host = host
        self._warned_at: datetime | None = None

    def check(self, now: datetime | None = None) -> None:
        """Renew what is due; what cannot be renewed is said once a day.

        Args:
            now: the moment, in UTC; the present if not given.

        Raises:
            TrustError: the certificate cannot be read.
        """
        now = now or datetime.now(UTC)
        end = load_certificate(self._home.server_certificate).not_valid_after_utc
        if end - now > BEFORE_END:
            return
        try:
            homes.renew(self._home, self._host)
        except (TrustError, StorageError) as error:
            if self._warned_at is None or now - self._warned_at >= timedelta(days=1):
                self._warned_at = now
                log.warning(
                    "the server's certificate ends on %s and is not renewed: %s",
                    f"{end:%Y-%m-%d %H:%M} UTC",
                    error,
                )
        else:
            log.info("the server's certificate was renewed; the old one ended on %s", end)


def issue_for_superlink(home: ServerHome) -> None:
    """Give SuperLink a certificate that lasts as long as the CA; keep it if that cannot be.

    Raises:
        TrustError: it has none, and the CA's key is not there to issue one.
        StorageError: the folder cannot be written.
    """
    days = (load_certificate(home.ca).not_valid_after_utc - datetime.now(UTC)).days
    try:
        homes.issue(
            home, "localhost", home.superlink_certificate, home.superlink_key, days=days
        )
    except TrustError:
        if not home.superlink_certificate.exists():
            raise
