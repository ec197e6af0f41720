"""The round loop: the same for a federation and for a simulation.

One round, once: (1) read anew what the agreement allows, (2) ask every site that is there
and still agrees, (3) meanwhile measure the adapter they were sent, if it is to be, (4) collect
replies until all have answered, cannot answer any more, or the deadline has passed, adding each
that counts to the aggregate as it comes, (5) check the quorum, (6) make the adapter after it, (7)
write the round down.

A site that is lost in a round is not waited for, unless the quorum needs it. Then it is, until
the deadline, and asked the same again when it is back: it has spent the round already, and
answers with what stands.

What carries packets is an `Exchange`; what remembers is a `Record`; what was agreed are
`Terms`. Where each comes from is not known here.
"""

import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.errors import RunError
from fedpact.common.randomness import Randomness, SecureRandom
from fedpact.common.study import Study
from fedpact.server import aggregation
from fedpact.server.admission import Admitted, Expected, SetAside, admit
from fedpact.server.aggregation import Standing
from fedpact.server.aggregation.clipped import Clipping
from fedpact.server.contributions import LeaveOneOut
from fedpact.server.diagnostics import Diagnosis, Examination
from fedpact.server.round_needs import Answer, ClassCounts, Exchange, Measure, Record, Terms


class _OverError(RunError):
    """No further round may be run; the run ends with the adapter it has."""


@dataclass(frozen=True, eq=False)
class _Ended:
    """A round that has ended.

    Attributes:
        number: of the round, from 1.
        after: what the run has come to.
        diagnosis: what its updates were like.
        left_out: the round without each site; None if the study does not ask for it.
    """

    number: int
    after: Standing
    diagnosis: Diagnosis
    left_out: LeaveOneOut | None


@dataclass
class Conductor:
    """Conducts one run of a study.

    Attributes:
        study: with the institutions that take part.
        run: the run's identifier.
        exchange: what carries packets.
        record: what remembers.
        terms: reads what the agreement allows, anew for each round.
        measure: measures an adapter on the public test set; None where there is none.
        rng: for the coordinator's own noise, where the study asks for it; cryptographic by default.
        clock: seconds, monotonic.
    """

    study: Study
    run: str
    exchange: Exchange
    record: Record
    terms: Callable[[], Terms]
    measure: Measure | None = None
    rng: Randomness = field(default_factory=SecureRandom)
    clock: Callable[[], float] = field(default=time.monotonic)
    _clipping: Clipping | None = field(init=False)

    def __post_init__(self) -> None:
        clips = self.study.aggregation.clip_norm is not None
        self._clipping = Clipping(self.study, self.rng) if clips else None

    def conduct(
        self,
        weights: Weights,
        first_round: int = 1,
        state: Weights | None = None,
        clip_norm: float | None = None,
    ) -> Weights:
        """Run the rounds from `first_round` on.

        Args:
            weights: the adapter before that round.
            first_round: from 1.
            state: what the server optimiser remembers of the rounds before.
            clip_norm: to which that round's updates are clipped; the study's by default.

        Returns:
            the adapter after the last round, or after the last before the run was to stop.

        Raises:
            RunError: a round had too few updates, or nobody came.
        """
        if self._clipping is not None and clip_norm is not None:
            self._clipping.norm = clip_norm
        self.record.begun(weights, first_round)
        standing = Standing(weights, state)
        ended: _Ended | None = None
        for number in range(first_round, self.study.training.rounds + 1):
            try:
                asked = self._gather(number, everyone=number == first_round)
            except _OverError as over:
                self.record.stopped(str(over))
                break
            if self.record.should_stop():
                break
            ended = self._round(number, standing, asked, ended)
            standing = ended.after
        if ended is not None:
            self._measure(ended)
        return standing.adapter

    def _round(
        self, number: int, before: Standing, asked: AbstractSet[str], last: _Ended | None
    ) -> _Ended:
        # From here: those who were asked have the whole deadline, however long others took.
        started = self.clock()
        adapters = aggregation.sent(self.study, before.adapter, asked)
        digests = {name: weights.digest for name, weights in adapters.items()}
        packets = {w.digest: self._request(number, w) for w in set(adapters.values())}
        requests = {name: packets[digest] for name, digest in digests.items()}
        whole = before.adapter.digest
        cut = {name: digest for name, digest in digests.items() if digest != whole}
        self.record.round_started(number, asked, cut)
        self.exchange.ask(requests)
        if last is not None and last.number % self.study.evaluation.every == 0:
            self._measure(last)
        ended = self._collect(number, before, adapters, started, requests)
        seconds, after = self.clock() - started, ended.after
        norm = self._clipping.norm if self._clipping is not None else None
        self.record.round_ended(
            number, after.adapter, seconds, after.state, ended.diagnosis, norm
        )
        return ended

    def _gather(self, number: int, *, everyone: bool) -> AbstractSet[str]:
        """Wait until a quorum of those who agree is there, or all of them; or the run is to stop."""
        deadline = self.clock() + self.study.federation.deadline_seconds
        while True:
            wanted = self._willing()
            present = wanted & self.exchange.present()
            needed = len(wanted) if everyone else self.study.federation.quorum
            if len(present) >= needed or self.record.should_stop():
                return present
            if self.clock() > deadline:
                if len(present) >= self.study.federation.quorum:
                    return present
                raise RunError(
                    f"Round {number} needs {self.study.federation.quorum} sites, "
                    f"{len(present)} came.",
                    advice="Start their daemons with `fedpact client up`, then run again.",
                )
            time.sleep(0.1)

    def _willing(self) -> AbstractSet[str]:
        """The institutions that may be asked now.

        Raises:
            _OverError: the agreement does not hold any more, or too few would be left.
        """
        terms = self.terms()
        if terms.over:
            raise _OverError(terms.over)
        quorum = self.study.federation.quorum
        if len(terms.willing) < quorum:
            raise _OverError(
                f"Only {len(terms.willing)} institutions agree to the study, its quorum is "
                f"{quorum}."
            )
        return terms.willing

    def _request(self, number: int, weights: Weights) -> wire.Packet:
        header = wire.RequestHeader(
            run=self.run,
            round=number,
            study_digest=self.study.digest,
            study=self.study.canonical(),
            adapter=wire.ArrayInfo.of(weights),
        )
        return wire.pack(header, weights)

    def _measure(self, ended: _Ended) -> None:
        if self.measure is None:
            return
        metrics, worth = self.measure(ended.after.adapter), None
        if ended.left_out is not None:
            worth = ended.left_out.contributions(metrics, self.measure)
        self.record.measured(ended.number, metrics, worth)

    def _collect(
        self,
        number: int,
        before: Standing,
        adapters: Mapping[str, Weights],
        started: float,
        requests: Mapping[str, wire.Packet],
    ) -> _Ended:
        """Aggregate the round's updates as they come."""
        trained = aggregation.trained_manifest(self.study, before.adapter.manifest, number)
        total = aggregation.Round(self.study, before, number, self._clipping)
        examination = Examination(before.adapter, trained)
        left_out = self._leave_one_out(number, before)
        quorum, deadline = self.study.federation.quorum, self.study.federation.deadline_seconds
        pending, away, counted = set(requests), set[str](), 0
        while pending:
            for name, packet in self.exchange.replies().items():
                if name not in pending:
                    continue
                pending.discard(name)
                away.discard(name)
                outcome = admit(packet, self._expected(number, adapters[name]))
                if isinstance(outcome, Admitted):
                    weight = self.study.size(self.study.institution(name))
                    self.record.admitted(number, name, outcome.change, weight)
                    total.add(outcome.change, weight)
                    examination.add(outcome.change, weight)
                    if left_out is not None:
                        left_out.add(name, outcome.change, weight)
                    counted += 1
                self.record.answered(number, name, _answer(outcome, packet))
            away |= pending & self.exchange.lost(pending - away)
            if counted + len(pending - away) < quorum <= counted + len(pending):
                away -= self._ask_again(away, requests)
            else:
                self._give_up(number, away)
                pending -= away
                away.clear()
            if self.clock() - started > deadline:
                self._give_up(number, away)
                for name in pending - away:
                    late = Answer("late", f"No reply in {deadline:.0f} s.")
                    self.record.answered(number, name, late)
                break
        if counted < quorum:
            raise RunError(
                f"Round {number} has {counted} updates, its quorum is {quorum}.",
                advice="`fedpact run watch` shows why each site's reply did not count.",
            )
        return _Ended(number, total.result(), examination.result(), left_out)

    def _leave_one_out(self, number: int, before: Standing) -> LeaveOneOut | None:
        """What makes the round without each site; any round may turn out to be the last."""
        if self.study.evaluation.contributions == "none" or self.measure is None:
            return None
        return LeaveOneOut(self.study, before, number, self._clipping)

    def _expected(self, number: int, adapter: Weights) -> Expected:
        """What the reply of a site that was sent this adapter must fit."""
        return Expected(
            self.run,
            number,
            self.study.digest,
            aggregation.trained_manifest(self.study, adapter.manifest, number),
            self.study.evaluation.site_metrics,
            self.study.training.local_steps,
            self.study.privacy.target_epsilon if self.study.is_private else None,
            self.study.classes_measured,
        )

    def _ask_again(
        self, away: AbstractSet[str], requests: Mapping[str, wire.Packet]
    ) -> AbstractSet[str]:
        """Ask those of the lost that are back; who they are."""
        back = away & self.exchange.present() if away else away
        if back:
            self.exchange.ask_again({name: requests[name] for name in sorted(back)})
        return back

    def _give_up(self, number: int, away: AbstractSet[str]) -> None:
        for name in away:
            reason = "The site went away or was started again during the round."
            self.record.answered(number, name, Answer("lost", reason))


def _answer(outcome: Admitted | SetAside, packet: wire.Packet) -> Answer:
    if isinstance(outcome, SetAside):
        return Answer(outcome.state, outcome.reason, bytes_in=packet.size)
    metrics = outcome.header.metrics
    return Answer(
        "updated",
        bytes_in=packet.size,
        epsilon=outcome.header.epsilon,
        norm=outcome.change.norm,
        digest=outcome.change.digest,
        loss=metrics.loss if metrics else None,
        accuracy=metrics.accuracy if metrics else None,
        classes=ClassCounts(metrics.right, metrics.wrong, metrics.count_noise)
        if metrics and metrics.classes
        else None,
    )
