"""A site's metrics for Prometheus, in a registry of its own.

What a data set has spent is the site's secret. It is among the metrics only while their
endpoint stays on loopback; elsewhere it is left out.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fedpact.client.statement import Statement
from fedpact.client.trainer import Trained
from fedpact.client.workbench import Workbench
from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.errors import FedpactError
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.randomness import Randomness
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study

log = logging.getLogger(__name__)

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)


class ClientMetrics:
    """What a site's daemon counts; each attribute is one metric."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "fedpact_client_answers",
            "Requests answered, by what left: update, or why it was refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.rounds = Counter(
            "fedpact_client_rounds", "Rounds that were trained.", registry=self.registry
        )
        self.training_seconds = Histogram(
            "fedpact_client_training_seconds",
            "How long a round's training took.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.bytes_out = Counter(
            "fedpact_client_bytes_out",
            "Bytes that the gate has let out.",
            registry=self.registry,
        )
        self.connected = Gauge(
            "fedpact_client_connected",
            "Whether the coordinator is connected (1) or not (0).",
            registry=self.registry,
        )
        self.last_contact = Gauge(
            "fedpact_client_last_contact_timestamp_seconds",
            "When the coordinator last answered, in seconds since 1970.",
            registry=self.registry,
        )

    def answered(self, header: wire.UpdateHeader | wire.Refusal, size: int) -> None:
        """Count an answer of `size` bytes."""
        outcome = header.code if isinstance(header, wire.Refusal) else header.kind
        self.answers.labels(outcome).inc()
        self.bytes_out.inc(size)

    def show_spending(self, statements: Callable[[], Iterable[Statement]]) -> None:
        """Have every scrape say what each data set has spent. Only for an endpoint on loopback.

        Args:
            statements: what has been spent by now, one for each data set.
        """
        self.registry.register(_Spending(statements))


class _Spending(Collector):
    def __init__(self, statements: Callable[[], Iterable[Statement]]) -> None:
        self._statements = statements

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What each data set has spent of its cap."""
        spent = GaugeMetricFamily(
            "fedpact_client_epsilon_spent",
            "ε that a data set has spent, at δ, for adding or removing one unit.",
            labels=["dataset", "unit", "delta"],
        )
        cap = GaugeMetricFamily(
            "fedpact_client_epsilon_cap",
            "ε that the policy lets a data set spend over its lifetime, at δ, for adding or removing "
            "one unit.",
            labels=["dataset", "unit", "delta"],
        )
        try:
            statements = list(self._statements())
        except FedpactError as error:
            log.warning("a scrape is not whole: %s", error)
            return
        for statement in statements:
            about = [statement.dataset, statement.unit, f"{statement.delta:.3g}"]
            spent.add_metric(about, statement.epsilon)
            cap.add_metric(about, statement.cap)
        yield spent
        yield cap


class MeteredWorkbench(Workbench):
    """A workbench whose trainings are counted and timed."""

    def __init__(self, metrics: ClientMetrics, rng: Randomness | None = None) -> None:
        super().__init__(rng=rng)
        self._metrics = metrics

    def train(
        self,
        study: Study,
        institution: str,
        received: Weights,
        records: EncodedRecords,
        mechanism: SubsampledGaussian | None,
    ) -> Trained:
        """Train one round, as any workbench."""
        with self._metrics.training_seconds.time():
            trained = super().train(study, institution, received, records, mechanism)
        self._metrics.rounds.inc()
        return trained
