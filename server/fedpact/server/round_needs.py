"""What the round loop needs of others: an exchange, a record, and the agreement's terms."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.evaluation import Metrics
from fedpact.common.study import Study
from fedpact.server.contributions import Contribution
from fedpact.server.diagnostics import Diagnosis

Measure = Callable[[Weights], Metrics]


class Exchange(Protocol):
    """What carries packets to sites and back."""

    def present(self) -> AbstractSet[str]:
        """Names of the institutions whose sites are connected."""
        ...

    def ask(self, packets: Mapping[str, wire.Packet]) -> None:
        """Send a packet to each named institution."""
        ...

    def ask_again(self, packets: Mapping[str, wire.Packet]) -> None:
        """Send a packet once more to some of those that were asked, and were lost."""
        ...

    def replies(self) -> Mapping[str, wire.Packet]:
        """Replies that have come since last asked; waits a moment if there are none."""
        ...

    def lost(self, pending: AbstractSet[str]) -> AbstractSet[str]:
        """Those of the pending whose site cannot answer any more (gone, or restarted)."""
        ...


@dataclass(frozen=True)
class ClassCounts:
    """Noisy counts of predictions for each label of the study.

    Attributes:
        right: how many are right, for each label.
        wrong: how many are wrong, for each label.
        noise: the noise's standard deviation in each number.
    """

    right: tuple[float, ...]
    wrong: tuple[float, ...]
    noise: float


@dataclass(frozen=True)
class Answer:
    """What became of one institution in one round.

    Attributes:
        state: asked, updated, refused, rejected, late or lost.
        reason: why it does not count; empty for an update.
        bytes_in: size of the reply.
        epsilon: ε that the run has cost there so far, as the site says; None without DP.
        norm: L2 norm of the change.
        digest: SHA-256 of the change.
        loss: on the site's own records, if the study asks for it.
        accuracy: the same.
        classes: counts for each label, if the study asks for them.
    """

    state: str
    reason: str = ""
    bytes_in: int = 0
    epsilon: float | None = None
    norm: float | None = None
    digest: str | None = None
    loss: float | None = None
    accuracy: float | None = None
    classes: ClassCounts | None = None


class Record(Protocol):
    """What remembers a run."""

    def begun(self, weights: Weights, number: int = 1) -> None:
        """The run begins, or goes on, with the adapter at these weights.

        Args:
            weights: the adapter.
            number: of the round that comes first.
        """
        ...

    def round_started(
        self, number: int, asked: AbstractSet[str], sent: Mapping[str, str] | None = None
    ) -> None:
        """A round begins and these institutions were asked.

        Args:
            number: of the round, from 1.
            asked: the institutions.
            sent: to whom the adapter does not go whole, the digest of what goes there.
        """
        ...

    def admitted(self, number: int, institution: str, change: Weights, weight: float) -> None:
        """An institution's change counts; it is added to the aggregate next."""
        ...

    def answered(self, number: int, institution: str, answer: Answer) -> None:
        """An institution's part in the round is decided."""
        ...

    def round_ended(
        self,
        number: int,
        weights: Weights,
        seconds: float,
        state: Weights | None = None,
        diagnosis: Diagnosis | None = None,
        clip_norm: float | None = None,
    ) -> None:
        """The round counts.

        Args:
            number: of the round, from 1.
            weights: the adapter after it.
            seconds: it took.
            state: what the server optimiser remembers; None without one.
            diagnosis: what its updates were like.
            clip_norm: to which the next round's updates are clipped; None where they are not.
        """
        ...

    def measured(
        self,
        number: int,
        metrics: Metrics,
        contributions: Mapping[str, Contribution] | None = None,
    ) -> None:
        """The adapter after this round was measured on the public test set.

        Args:
            number: of the round, from 1.
            metrics: what was measured.
            contributions: what each institution's update was worth, if the study asks for it.
        """
        ...

    def should_stop(self) -> bool:
        """Whether someone asked the run to stop."""
        ...

    def stopped(self, reason: str) -> None:
        """The run stops here, because the agreement does not hold any more."""
        ...


@dataclass(frozen=True)
class Terms:
    """What the agreement allows at one moment.

    Attributes:
        willing: institutions that may be asked.
        over: why no further round may be run; empty while one may.
    """

    willing: AbstractSet[str]
    over: str = ""

    @classmethod
    def all_of(cls, study: Study) -> "Terms":
        """Everyone agrees: terms of a simulation, whose sites are the researcher's own."""
        return cls({institution.name for institution in study.institutions})
