"""What a site does with a request: the site's word is final, and every step is in order.

(1) The message is whole. (2) The study is the one that its digest names, the site takes part in
it, and this institution has signed exactly it; a run is of one study, and its rounds go forward.
(3) A request that was answered before gets the same bytes again. (4) The site's own policy allows
it, at this hour. (5) The data set and the base model are at hand, the adapter fits, and training
stands its self-test.
(6) The ledger reserves what the round costs, durably. (7) Private metrics, then training.
(8) The ledger settles, and what is personal is kept. (9) The gate checks, waits for a person
where the policy says so, writes down and releases, if the institution still agrees.

What fails on the way becomes a refusal with its reason; nothing that fails before (6) costs
any privacy.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from traceback import format_tb
from typing import Literal

from fedpact.client import personal
from fedpact.client.datasets import Dataset
from fedpact.client.gate import Allowed, Gate
from fedpact.client.held import StoppingError
from fedpact.client.ledger import AlreadyReservedError, Ledger, Reservation
from fedpact.client.personal import Kept, RunFolder
from fedpact.client.policy import Policy
from fedpact.client.policy_check import check, check_hours, check_seed
from fedpact.client.validation import Split
from fedpact.client.workbench import Workbench
from fedpact.common import logs, wire
from fedpact.common.adapter import Weights
from fedpact.common.errors import (
    BudgetError,
    DataError,
    FedpactError,
    ModelError,
    PolicyError,
    StorageError,
    StudyError,
    TrainingError,
    WireError,
)
from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian
from fedpact.common.planned import plan, plan_metrics
from fedpact.common.study import Study

log = logging.getLogger(__name__)

_UNREADABLE = {"run": "unreadable", "round": 1, "study_digest": "0" * 64}
Code = Literal["study", "policy", "budget", "data", "model", "message", "training"]
_CODES: dict[type[FedpactError], Code] = {
    StudyError: "study",
    PolicyError: "policy",
    BudgetError: "budget",
    DataError: "data",
    ModelError: "model",
    TrainingError: "training",
    WireError: "message",
}


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@dataclass(frozen=True)
class Site:
    """One institution's side of a study.

    Attributes:
        name: the institution, as studies name it.
        dataset: finds the data set that a study means.
        records: a data set's encoded records, split where the study asks for metrics.
        agreed: returns if the institution agrees to a study now, raises `PolicyError` if not.
        policy: reads the site's own rules, anew for each request.
        ledger: what its data sets have spent.
        gate: the only door out.
        runs: what stays here of each run.
        workbench: the resident model.
        now: the moment, on the site's own clock.
        pause: waits so many seconds; whether the site is to stop.
    """

    name: str
    dataset: Callable[[Study], Dataset]
    records: Callable[[Study, Dataset], Split]
    agreed: Callable[[Study], None]
    policy: Callable[[], Policy]
    ledger: Ledger
    gate: Gate
    runs: RunFolder
    workbench: Workbench
    now: Callable[[], datetime] = lambda: datetime.now(UTC).astimezone()
    pause: Callable[[float], bool] = _sleep

    def answer(self, packet: wire.Packet) -> wire.Packet:
        """Answer one request with an update or a refusal.

        Raises:
            StorageError: the site's own database or disk fails; nothing has left.
            StoppingError: the site is to stop while it waits for a person; nothing has left.
        """
        try:
            request, weights = _request(packet)
        except WireError as error:
            return self._refuse(_UNREADABLE, error)
        head = request.model_dump(include={"run", "round", "study_digest"})
        with logs.about(
            site=self.name, study=request.study_digest, run=request.run, round=request.round
        ):
            try:
                return self._answer(request, weights)
            except tuple(_CODES) as error:
                return self._refuse(head, error)
            except (StorageError, StoppingError):
                raise
            except Exception as error:  # noqa: BLE001 - logged, and refused
                # Whatever a coordinator sends, the daemon goes on: one that it can end is not
                # resident. The log says what kind of error and where, not its words: those may
                # quote a record.
                kind, where = type(error).__name__, "".join(format_tb(error.__traceback__))
                log.error(  # noqa: TRY400
                    "run %s round %d: not foreseen: %s\n%s",
                    *(request.run, request.round, kind, where),
                )
                return self._refuse(head, TrainingError(f"Not foreseen: {kind}."))

    def _answer(self, request: wire.RequestHeader, weights: Weights) -> wire.Packet:
        study = _study(request)
        study.institution(self.name)
        self.agreed(study)
        if request.round > study.training.rounds:
            raise StudyError(f"The study has {study.training.rounds} rounds, no more.")
        self._follows(request)
        if (stored := self.gate.resend(request.run, request.round)) is not None:
            log.info("run %s round %d: sent again", request.run, request.round)
            return stored
        policy, dataset = self.policy(), self.dataset(study)
        check(policy, study, self.name, dataset.records)
        if (waited := self._wait(request, study, policy)) is not None:
            return waited
        check_hours(policy, self.now())
        check_seed(policy, self.workbench.is_seeded)
        mechanism, release = plan(study, self.name), plan_metrics(study)
        trained = self.workbench.fit(study, self.name, weights, request.round)
        self.workbench.self_test(study, self.name, request.run, request.round, mechanism)
        split = self.records(study, dataset)
        kept = self.runs.before(request.run, request.round)
        first = self.workbench.model(study).first
        start = personal.whole(study, first, weights, kept)
        raw = study.evaluation.site_metrics == "raw" and policy.allow_site_metrics
        metrics = self.workbench.measure(study, start, split.validation) if raw else None
        reservation = self._reserve(request, study, dataset, mechanism, release, policy)
        if release is not None:
            metrics = self.workbench.measure_privately(
                study, self.name, start, split.validation, release
            )
        log.info("run %s round %d: training", request.run, request.round)
        if self.workbench.is_seeded:
            log.warning(
                "run %s round %d: INSECURE: noise comes from a seed, and no ε holds",
                *(request.run, request.round),
            )
        result = self.workbench.train(study, self.name, start, split.training, mechanism)
        self.ledger.settle(reservation, result.steps)
        own = personal.after_round(
            study, self.name, self.workbench, start, kept, result.change, split.training
        )
        self.runs.keep(request.run, study, Kept(request.round, weights, own))
        change = result.change.select(trained.names)
        epsilon = self.ledger.spent_by_run(
            dataset.name, request.run, study.privacy.target_delta
        )
        header = wire.UpdateHeader(
            run=request.run,
            round=request.round,
            study_digest=request.study_digest,
            change=wire.ArrayInfo.of(change),
            epsilon=epsilon if study.is_private else None,
            steps=result.steps,
            metrics=metrics,
        )
        allowed = Allowed(
            trained,
            self.workbench.largest_change(study, self.name, start, mechanism),
            "raw" if raw else "none" if release is None else "private",
            0 if release is None else study.classes_measured,
            self.workbench.is_seeded,
        )
        self.agreed(study)
        if policy.release == "automatic":
            return self.gate.release(header, change, allowed)
        self.gate.hold(header, change, allowed)
        log.warning(
            "run %s round %d: waits; `fedpact client departures --waiting` shows what would leave",
            *(request.run, request.round),
        )
        if (waited := self._wait(request, study, policy)) is None:
            raise TrainingError("The update that waited for a person is lost.")
        return waited

    def _wait(
        self, request: wire.RequestHeader, study: Study, policy: Policy
    ) -> wire.Packet | None:
        """What a person says to a round's held update; None: nothing is held for it.

        Raises:
            PolicyError: the person said no, or nothing in time, or no longer agrees.
            StoppingError: the site is to stop.
        """
        longest = min(60 * policy.release_wait_minutes, study.federation.deadline_seconds)
        held = self.gate.held.wait(request.run, request.round, longest, self.pause)
        if held is None:
            return None
        self.agreed(study)
        match held.word:
            case "release":
                return self.gate.let_go(held)
            case "withhold":
                raise PolicyError("A person here has withheld the update.")
            case None:
                raise PolicyError(
                    "The update waits for a person here; asked again, it may leave."
                )

    def _follows(self, request: wire.RequestHeader) -> None:
        """Whether a request goes on where its run stands here."""
        newest = self.ledger.newest(request.run)
        if newest is None:
            return
        if newest.study_digest != request.study_digest:
            raise StudyError(f"The run {request.run} is of another study.")
        if request.round < newest.round and not self.gate.has_left(request.run, request.round):
            raise StudyError(
                f"The run {request.run} has come to round {newest.round} here and does not go "
                "back."
            )

    def _reserve(
        self,
        request: wire.RequestHeader,
        study: Study,
        dataset: Dataset,
        mechanism: SubsampledGaussian | None,
        release: GaussianRelease | None,
        policy: Policy,
    ) -> Reservation:
        """Reserve the round, or take up one that a crash left with nothing released.

        Taking it up costs nothing more: of the two trainings only this one is released.
        """
        try:
            return self.ledger.reserve(
                dataset.name,
                study,
                request.run,
                request.round,
                mechanism,
                cap=policy.max_epsilon,
                study_cap=policy.study_cap,
                metrics=release,
            )
        except AlreadyReservedError as error:
            standing = error.reservation
            released = self.gate.has_left(request.run, request.round)
            planned = (mechanism, release)
            if released or (standing.mechanism, standing.metrics) != planned:
                raise
            log.warning("run %s round %d: taken up after a crash", request.run, request.round)
            return standing

    def _refuse(self, head: Mapping[str, object], error: FedpactError) -> wire.Packet:
        code = next(code for kind, code in _CODES.items() if isinstance(error, kind))
        refusal = wire.Refusal.model_validate(
            {**head, "code": code, "reason": str(error)[: wire.MAX_REASON]}
        )
        # What is wrong with records may quote them, and logs travel: it stays in the database.
        why = "`fedpact client departures` says why" if code == "data" else refusal.reason
        log.warning("run %s round %d: refused (%s): %s", refusal.run, refusal.round, code, why)
        return self.gate.refuse(refusal, error.told)


def _request(packet: wire.Packet) -> tuple[wire.RequestHeader, Weights]:
    header, weights = wire.unpack(packet)
    if not isinstance(header, wire.RequestHeader) or weights is None:
        raise WireError("The message is not an update request.")
    if not weights.is_finite():
        raise WireError("The adapter received holds values that are not finite.")
    return header, weights


def _study(request: wire.RequestHeader) -> Study:
    study = Study.from_canonical(request.study)
    if study.digest != request.study_digest:
        raise StudyError("The study received does not have the digest that the request names.")
    return study
