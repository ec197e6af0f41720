"""How a site stands, at a glance: what `fedpact client status` shows."""

import math
from datetime import UTC, datetime
from typing import Any

from fedpact.client.daemon import read_status
from fedpact.client.gate import Gate
from fedpact.client.home import ClientHome
from fedpact.client.join import load_site
from fedpact.client.statement import statements
from fedpact.common.certificates import load_certificate


def standing(home: ClientHome) -> dict[str, Any]:
    """How a site stands, for programs.

    Returns:
        institution, coordinator; whether the daemon is up, since when it is connected; the
        run, round, outcome and moment of its last answer; `left`: how much has left, by kind,
        and bytes; `waiting`: updates that wait for a person's word; days left of the CA's certificate; `datasets`: name, epsilon (null: infinite),
        delta and cap of each. What is not known is None.

    Raises:
        TrustError: the site has not joined.
        PolicyError: its policy is not valid.
        StorageError: its database cannot be read.
    """
    site, daemon = load_site(home), read_status(home)
    ends = load_certificate(home.ca).not_valid_after_utc
    engine = home.open_database()
    try:
        gate = Gate(engine, home.outbox)
        left, waiting = gate.totals(), len(gate.held.waiting())
    finally:
        engine.dispose()
    return {
        "institution": site.institution,
        "coordinator": site.address,
        "up": daemon is not None,
        "connected_since": _moment(daemon.connected_since) if daemon else None,
        "run": daemon.run if daemon else None,
        "round": daemon.round if daemon else None,
        "outcome": daemon.outcome if daemon else None,
        "answered_at": _moment(daemon.answered_at) if daemon else None,
        "left": left,
        "waiting": waiting,
        "ca_days_left": (ends - datetime.now(UTC)).days,
        "datasets": [
            {
                "name": s.dataset,
                "epsilon": None if math.isinf(s.epsilon) else s.epsilon,
                "delta": s.delta,
                "cap": s.cap,
                "unit": s.unit,
                "neighbours": f"add or remove one {s.unit}",
            }
            for s in statements(home)
        ],
    }


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
