"""Callers of the control plane: whose key is whose, and what role it has."""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine

from fedpact.common.identity import Role, SigningKey, public_bytes
from fedpact.server import institutions
from fedpact.server.roles import COORDINATOR
from fedpact.server.tables import transaction

_SECONDS = 1.0


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        institution: its name; `coordinator` for the coordinator itself.
        role: what it does in the federation.
        key: its Ed25519 public key, 32 bytes.
    """

    institution: str
    role: Role
    key: bytes


class Callers:
    """Who may call: read from the database again every second, so that revoking works at once."""

    def __init__(self, engine: Engine, coordinator: SigningKey) -> None:
        self._engine = engine
        self._own = Caller(COORDINATOR, Role.COORDINATOR, public_bytes(coordinator))
        self._known: Mapping[bytes, Caller] = {}
        self._read_at = -math.inf
        self._reading = threading.Lock()

    def find(self, key: bytes) -> Caller | None:
        """Whose key this is; None if nobody's who may come in.

        Raises:
            StorageError: the database cannot be read.
        """
        if self._are_old():
            with self._reading:
                if self._are_old():
                    # Before the query, so that a change during it is seen the next time.
                    now = time.monotonic()
                    self._known = self._read()
                    self._read_at = now
        return self._known.get(key)

    def forget(self) -> None:
        """Read again at the next question: a key has just changed."""
        # A reading that is under way may have missed the change: it must not count.
        with self._reading:
            self._read_at = -math.inf

    def _are_old(self) -> bool:
        return time.monotonic() - self._read_at > _SECONDS

    def _read(self) -> Mapping[bytes, Caller]:
        with transaction(self._engine) as session:
            known = {
                row.signing_key: Caller(row.name, Role(row.role), row.signing_key)
                for row in institutions.list_institutions(session)
                if row.state == "joined" and row.signing_key is not None
            }
        return known | {self._own.key: self._own}
