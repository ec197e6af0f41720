"""The coordinator's metrics for Prometheus, in a registry of its own.

What the database knows is read from it at each scrape, so that it is right from the first
scrape after a restart; what only this process sees is counted here.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedpact.common.certificates import load_certificate
from fedpact.common.errors import FedpactError
from fedpact.server import institutions
from fedpact.server.control import Node
from fedpact.server.gateway import FLEET_ROUTES
from fedpact.server.home import ServerHome
from fedpact.server.run_tables import AnswerRow, RoundRow, RunRow
from fedpact.server.tables import transaction

log = logging.getLogger(__name__)

_DAY = 86_400
_ROUTES = {f"/v1/fleet/{name}" for name in FLEET_ROUTES}


class ServerMetrics:
    """What the coordinator's process counts; each attribute is one metric."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fedpact_server_gateway_requests",
            "Requests to the public port, by route (other: none of ours) and HTTP status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.superlink_restarts = Counter(
            "fedpact_server_superlink_restarts",
            "How often SuperLink ended and was started again.",
            registry=self.registry,
        )

    def counted(self, app: ASGIApp) -> ASGIApp:
        """An app that does the same, and whose answers are counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            path = scope.get("path", "")
            route = path if path in _ROUTES else "other"

            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self.requests.labels(route, message["status"]).inc()
                await send(message)

            await app(scope, receive, seen)

        return counted

    def show_state(self, state: "State") -> None:
        """Have every scrape say how the coordinator stands."""
        self.registry.register(_StateCollector(state))


@dataclass(frozen=True)
class State:
    """Where a scrape finds how the coordinator stands.

    Attributes:
        home: the coordinator's folder.
        engine: its database.
        nodes: the sites that SuperLink knows; raises `AddressError` while it is away.
    """

    home: ServerHome
    engine: Engine
    nodes: Callable[[], list[Node]]


class _StateCollector(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """What holds at this moment; what cannot be read is left out, and said in the log."""
        for read in (_from_database, _from_superlink, _from_certificates):
            try:
                yield from read(self._state)
            except FedpactError as error:
                log.warning("a scrape is not whole: %s", error)


def _from_database(state: State) -> list[Metric]:
    with transaction(state.engine) as session:
        by_state: dict[str, int] = dict.fromkeys(("invited", "joined", "revoked"), 0)
        for row in institutions.list_institutions(session):
            by_state[row.state] = by_state.get(row.state, 0) + 1
        runs = session.execute(select(RunRow.status, func.count()).group_by(RunRow.status))
        answers = session.execute(
            select(AnswerRow.state, func.count())
            .where(AnswerRow.state != "asked")
            .group_by(AnswerRow.state)
        )
        return [
            _gauge("institutions", "Institutions, by state.", "state", by_state.items()),
            _gauge(
                "runs",
                "Runs, by status.",
                "status",
                ((status, count) for status, count in runs),
            ),
            _counter(
                "updates",
                "What sites answered, by outcome.",
                "outcome",
                ((outcome, count) for outcome, count in answers),
            ),
            CounterMetricFamily(
                "fedpact_server_rounds",
                "Rounds that have ended and count.",
                session.scalar(
                    select(func.count())
                    .select_from(RoundRow)
                    .where(RoundRow.seconds.is_not(None))
                ),
            ),
            CounterMetricFamily(
                "fedpact_server_bytes_in",
                "Bytes of the sites' answers.",
                session.scalar(select(func.coalesce(func.sum(AnswerRow.bytes_in), 0))),
            ),
        ]


def _from_superlink(state: State) -> list[Metric]:
    online = sum(node.status == "online" for node in state.nodes())
    return [
        GaugeMetricFamily("fedpact_server_sites_online", "Sites that are connected.", online)
    ]


def _from_certificates(state: State) -> list[Metric]:
    now = datetime.now(UTC)
    paths = {"ca": state.home.ca, "server": state.home.server_certificate}
    days = {
        name: (load_certificate(path).not_valid_after_utc - now).total_seconds() / _DAY
        for name, path in paths.items()
    }
    return [
        _gauge("certificate_days_left", "Days until it expires.", "certificate", days.items())
    ]


def _gauge(
    name: str, help_: str, label: str, values: Iterable[tuple[str, float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"fedpact_server_{name}", help_, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _counter(
    name: str, help_: str, label: str, values: Iterable[tuple[str, float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"fedpact_server_{name}", help_, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family
