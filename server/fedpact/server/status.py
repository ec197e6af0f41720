"""How a coordinator stands, at a glance: what `fedpact server status` shows.

Everything is read from the folder, the database and SuperLink at the moment it is asked for;
nothing is asked of the process that serves.
"""

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedpact.common.certificates import fingerprint, load_certificate
from fedpact.common.errors import AddressError
from fedpact.server import institutions, runs
from fedpact.server.control import Control
from fedpact.server.home import ServerHome
from fedpact.server.liveness import settle
from fedpact.server.tables import transaction

_LOOK_SECONDS = 1.0


def standing(home: ServerHome) -> dict[str, Any]:
    """How a coordinator stands, for programs.

    Returns:
        folder, address, service (the control plane), up, process, superlink (down, starting or up), the CA's fingerprint,
        both certificates' last moment; `institutions` by state and online; `run`: the newest
        run's id, study, status, round (the one it is in, or was in last) and rounds, or None.

    Raises:
        UsageError: there is no coordinator in the folder.
        TrustError: a certificate cannot be read.
        StorageError: the database cannot be read.
    """
    settings, serving = home.settings(), home.serving()
    ca, certificate = (load_certificate(path) for path in (home.ca, home.server_certificate))
    superlink, online = _superlink(home) if serving else ("down", set[str]())
    return {
        "folder": str(home.folder),
        "address": settings.address,
        "service": settings.service_address,
        "up": serving is not None,
        "process": serving.pid if serving else None,
        "superlink": superlink,
        "ca_fingerprint": fingerprint(ca),
        "ca_valid_until": ca.not_valid_after_utc.isoformat(),
        "certificate_valid_until": certificate.not_valid_after_utc.isoformat(),
        **_from_database(home, online),
    }


def _from_database(home: ServerHome, online: set[str]) -> dict[str, Any]:
    engine = home.open_database()
    try:
        with transaction(engine) as session:
            rows = [(row.state, row.node_id) for row in institutions.list_institutions(session)]
        name = runs.newest(engine)
        newest = settle(home, engine, runs.view(engine, name)) if name else None
    finally:
        engine.dispose()
    states = [state for state, _ in rows]
    return {
        "institutions": {
            **{state: states.count(state) for state in ("invited", "joined", "revoked")},
            "online": sum(state == "joined" and node in online for state, node in rows),
        },
        "run": newest
        and {
            "run": newest.id,
            "study": newest.study.study.name,
            "status": newest.status,
            "round": len(newest.rounds),
            "rounds": newest.study.training.rounds,
        },
    }


def _superlink(home: ServerHome) -> tuple[str, set[str]]:
    """Whether SuperLink answers, and the ids of the nodes that are online."""
    try:
        with Control.of(home) as control:
            nodes = control.nodes()
    except AddressError:
        return "starting", set()
    return "up", {str(node.node_id) for node in nodes if node.status == "online"}


def table(found: dict[str, Any]) -> Table:
    """The same for people."""
    shown = Table(show_header=False)
    for key, value in found.items():
        shown.add_row(key.replace("_", " "), _cell(key, value))
    return shown


def watch(home: ServerHome, console: Console) -> None:
    """Show how a coordinator stands, and again every second, until interrupted.

    Raises:
        FedpactError: as `standing`.
    """
    with Live(table(standing(home)), console=console) as live:
        while True:
            time.sleep(_LOOK_SECONDS)
            live.update(table(standing(home)))


def _cell(key: str, value: Any) -> str:
    match key, value:
        case "institutions", dict():
            return ", ".join(f"{count} {state}" for state, count in value.items())
        case "run", dict():
            what = f"{value['run']} of {value['study']}"
            return f"{what}: {value['status']}, round {value['round']}/{value['rounds']}"
        case _, bool():
            return "yes" if value else "no"
        case _, None:
            return ""
        case _:
            return str(value)
