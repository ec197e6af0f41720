"""The daemon's envoy: brings proposals home, and what this institution signed to the coordinator.

One visit: (1) decisions that were not sent yet are sent, (2) the studies that concern this
institution are written down, (3) where its policy says `approval = "automatic"`, those that
its rules allow are approved, and sent; what a person must decide is left to a person, and the
log says why, once, (4) transcript heads are exchanged, which is also done after each round.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedpact.client.agreements import Agreements, Heard, Shown
from fedpact.common.agreement import Decision
from fedpact.common.errors import AddressError, FedpactError
from fedpact.common.identity import SigningKey
from fedpact.common.study import Study

log = logging.getLogger(__name__)

_FIRST_REST_SECONDS = 2.0
_LONGEST_REST_SECONDS = 15.0
_GROWTH = 1.5


class Coordinator(Protocol):
    """What an envoy asks of the coordinator."""

    def studies(self) -> Sequence[tuple[Study, Heard]]:
        """The studies that concern this institution.

        Raises:
            AddressError: the coordinator cannot be reached.
        """
        ...

    def decide(self, decision: Decision) -> None:
        """Give the coordinator a decision.

        Raises:
            AddressError: the coordinator cannot be reached.
            FedpactError: it does not take the decision.
        """
        ...


@dataclass
class Envoy:
    """One institution's envoy.

    Attributes:
        institution: who sends it.
        key: what it signs with, read anew each time.
        agreements: what was shown and signed here.
        coordinator: whom it visits.
        objection: why a study is left to a person; empty where the policy approves it by
            itself.
        exchange_heads: shows our transcript's head and writes the coordinator's down; whether
            there was anything to show.
        wake: set it to have heads exchanged soon, or the envoy look whether it is to stop.
    """

    institution: str
    key: Callable[[], SigningKey]
    agreements: Agreements
    coordinator: Coordinator
    objection: Callable[[Study], str]
    exchange_heads: Callable[[], bool] = lambda: False
    wake: threading.Event = field(default_factory=threading.Event)
    _said: set[str] = field(default_factory=set)

    def visit(self) -> bool:
        """Visit the coordinator once; whether there was anything new.

        Raises:
            AddressError: it cannot be reached.
            StorageError: the site's own database fails.
        """
        self.send()
        news = self.listen()
        for shown in self.agreements.list():
            if shown.own is None and shown.heard.state in {"proposed", "agreed", "active"}:
                self._consider(shown)
        news = self.send() or news
        self.exchange_heads()
        return news

    def listen(self) -> bool:
        """Write down the studies that concern this institution; whether anything is new.

        Raises:
            AddressError: the coordinator cannot be reached.
            StorageError: the site's own database fails.
        """
        news = [self.agreements.hear(*found) for found in self.coordinator.studies()]
        return any(news)

    def send(self) -> bool:
        """Send the decisions that were not sent yet; whether there were any.

        Raises:
            AddressError: the coordinator cannot be reached.
            StorageError: the site's own database fails.
        """
        waiting = self.agreements.unsent()
        for decision in waiting:
            try:
                self.deliver(decision)
            except AddressError:
                raise
            except FedpactError as error:
                self._say_once(
                    f"the coordinator does not take our decision to {decision.kind} the study "
                    f"{decision.study_digest[:12]}: {error}"
                )
        return bool(waiting)

    def deliver(self, decision: Decision) -> None:
        """Give the coordinator one decision.

        Raises:
            AddressError: the coordinator cannot be reached.
            FedpactError: it does not take the decision.
        """
        self.coordinator.decide(decision)
        self.agreements.sent(decision)
        log.info("sent: %s the study %s", decision.kind, decision.study_digest[:12])

    def keep_visiting(self, stop: threading.Event) -> None:
        """Visit until told to stop; what goes wrong is said once, and tried again."""
        rest, away, woken = _FIRST_REST_SECONDS, False, False
        while not stop.is_set():
            try:
                news = self.exchange_heads() if woken else self.visit()
            except AddressError as error:
                news = False
                if not away:
                    log.warning("proposals and decisions wait: %s", error)
                away = True
            except FedpactError as error:
                news = False
                self._say_once(f"{error}")
            else:
                if away:
                    log.info("proposals and decisions come and go again")
                away = False
            rest = _FIRST_REST_SECONDS if news else min(rest * _GROWTH, _LONGEST_REST_SECONDS)
            woken = self.wake.wait(rest)
            self.wake.clear()

    def _consider(self, shown: Shown) -> None:
        study = shown.study
        why = self.objection(study)
        named = f"the study {study.study.name} ({study.digest[:12]})"
        if why:
            self._say_once(f"{named} waits for a person here: {why}")
            return
        self.agreements.decide(self.key(), self.institution, study, "approve")
        log.info("approved %s, as the policy says", named)

    def _say_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            log.warning("%s", words)
