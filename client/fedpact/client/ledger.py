"""What privacy a site's data sets have spent: durable and pessimistic.

Rules, held in this order:

1. A round's mechanism is **reserved** in a committed transaction before training starts, and
   **settled** after with the steps that really ran. What was never settled counts in full.
2. Two reservations never overlap: each is checked against all that were committed before it.
3. A round is reserved once for a data set. Asked again, the ledger says so, and its caller
   sends the stored reply or trains under the reservation that stands: one mechanism, one
   release, one cost.
4. After a reservation the run costs at most what its study promises, the study at most what
   the site's policy allows it, all runs together, and the data set at most what the policy
   allows over its lifetime, across studies and runs.
5. A data set is its content, its name and the population that its steward says it samples.
   Data sets that ever had one of the three in common share one budget, for ever.
6. All that a round computes on records is reserved at once: training, and the metrics that
   the study pays for. They are composed as if every record were in both.
7. One budget is in one unit, records or persons: an ε for one cannot be added to an ε for the
   other, so the unit of the first reservation is that of all.

ε is for adding or removing one such unit. A study without DP costs ∞ from its first round on.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Engine, and_, func, select
from sqlalchemy.orm import Session

from fedpact.client.tables import DatasetRow, IdentityRow, ReservationRow, exclusive, reading
from fedpact.common import accounting
from fedpact.common.errors import BudgetError, DataError, StorageError
from fedpact.common.mechanism import GaussianRelease, Mechanism, SubsampledGaussian
from fedpact.common.study import Study
from fedpact.common.transcript_store import write

# What rounding may add to a sum of steps that was planned to cost exactly the target.
_ROUNDING = 1 + 1e-9

_TRAINING, _METRICS = "training", "metrics"


@dataclass(frozen=True)
class Reservation:
    """Privacy set aside for one round of a run.

    Attributes:
        mechanism: what training may run; None for a study without DP.
        metrics: the release of private metrics, which counts in full; None: there is none.
        settled_steps: the steps that ran; None while it is not settled.
        counted_steps: the steps that count: those that ran, or all that were reserved.
        unit: whom its ε protects, as `Study.unit` has it.
    """

    id: int
    dataset: str
    study_digest: str
    study_name: str
    run: str
    round: int
    mechanism: SubsampledGaussian | None
    delta: float
    reserved_at: datetime
    settled_at: datetime | None
    settled_steps: int | None
    counted_steps: int
    unit: str
    metrics: GaussianRelease | None = None

    @property
    def counted(self) -> tuple[Mechanism | None, ...]:
        """What counts as having run; None is something without DP."""
        ran = self.mechanism and replace(self.mechanism, steps=self.counted_steps)
        training = (ran,) if self.counted_steps else ()
        return (*training, self.metrics) if self.metrics else training


class AlreadyReservedError(BudgetError):
    """The round has been reserved before: answer from the outbox, or resume it.

    Attributes:
        reservation: the one that stands.
    """

    def __init__(self, reservation: Reservation) -> None:
        super().__init__(
            f"Round {reservation.round} of run {reservation.run} has already been reserved "
            f"for the data set {reservation.dataset}.",
            told=f"Round {reservation.round} of run {reservation.run} has already been reserved.",
        )
        self.reservation = reservation


class Ledger:
    """The ledger of one site."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def reserve(
        self,
        dataset: str,
        study: Study,
        run: str,
        round_number: int,
        mechanism: SubsampledGaussian | None,
        *,
        cap: float,
        study_cap: float = math.inf,
        metrics: GaussianRelease | None = None,
    ) -> Reservation:
        """Set a round's privacy aside, durably, before anything is computed.

        Args:
            dataset: the data set's name.
            study: whose `target_epsilon` the run may cost at its `target_delta`.
            run: the run's id.
            round_number: the round, from 1.
            mechanism: what training is about to run; None for a study without DP.
            cap: ε that the data set may cost over its lifetime (the policy's `max_epsilon`).
            study_cap: ε that all runs of the study together may cost it.
            metrics: the release of metrics that goes with it, if any.

        Raises:
            AlreadyReservedError: the round was reserved before; nothing is spent twice.
            BudgetError: the run's, the study's or the data set's budget does not allow it.
            DataError: there is no such data set.
            StorageError: it could not be written down, so nothing may run.
        """
        with exclusive(self._engine, "reservations") as session:
            sha256 = _content(session, dataset)
            if earlier := _round(session, dataset, run, round_number):
                raise AlreadyReservedError(_reservation(*earlier))
            if mechanism is not None:
                shared = _shares_budget(session, dataset)
                _check_unit(session, shared, dataset, study)
                of_run = and_(shared, ReservationRow.run == run)
                of_study = and_(shared, ReservationRow.study_digest == study.digest)
                limits = (
                    (f"run {run}", study.privacy.target_epsilon, of_run),
                    (f"the study {study.digest[:12]}", study_cap, of_study),
                    (f"the data set {dataset}", cap, shared),
                )
                delta = study.privacy.target_delta
                _check_budget(session, limits, mechanism, metrics, delta, study.unit)
            reserved = {
                "dataset": dataset,
                "sha256": sha256,
                "study_digest": study.digest,
                "study_name": study.study.name,
                "run": run,
                "round": round_number,
                "delta": study.privacy.target_delta,
                "unit": study.unit,
                "reserved_at": datetime.now(UTC),
            }
            rows = [
                ReservationRow(
                    **reserved,
                    kind=_TRAINING,
                    noise_multiplier=mechanism.noise_multiplier if mechanism else 0.0,
                    sample_rate=mechanism.sample_rate if mechanism else 1.0,
                    steps=mechanism.steps if mechanism else study.training.local_steps,
                )
            ]
            if metrics is not None:
                rows.append(
                    ReservationRow(
                        **reserved,
                        kind=_METRICS,
                        noise_multiplier=metrics.noise_multiplier,
                        sample_rate=1.0,
                        steps=metrics.count,
                    )
                )
            session.add_all(rows)
            session.flush()
            for row in rows:
                write(session, "reserved", _written(row))
            return _reservation(*rows)

    def settle(self, reservation: Reservation, steps: int) -> Reservation:
        """Say how many of the reserved steps really ran; the rest is given back.

        Metrics are never given back. Call it only once nothing more will be computed under the reservation. Saying the
        same twice is harmless.

        Raises:
            BudgetError: more steps than were reserved, or settled before with others.
            StorageError: it could not be written; the reservation then counts in full.
        """
        with exclusive(self._engine, "reservations") as session:
            row = session.get(ReservationRow, reservation.id)
            if row is None:
                raise BudgetError(f"There is no reservation {reservation.id} to settle.")
            if not 0 <= steps <= row.steps:
                raise BudgetError(
                    f"Round {row.round} of run {row.run} took {steps} steps, but {row.steps} "
                    "were reserved."
                )
            if row.settled_steps is not None and row.settled_steps != steps:
                raise BudgetError(
                    f"Round {row.round} of run {row.run} was settled with "
                    f"{row.settled_steps} steps and cannot be settled again with {steps}."
                )
            rows = _round(session, row.dataset, row.run, row.round)
            if row.settled_steps is None:
                for one in rows:
                    one.settled_steps = steps if one is row else one.steps
                    one.settled_at = datetime.now(UTC)
                session.flush()
                for one in rows:
                    write(session, "settled", {**_written(one), "steps": one.settled_steps})
            return _reservation(*rows)

    def spent(self, dataset: str, delta: float) -> float:
        """ε that a data set has spent at δ, over all studies and runs.

        Raises:
            DataError: there is no such data set.
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            _content(session, dataset)
            return _epsilon(_mechanisms(session, _shares_budget(session, dataset)), delta)

    def spent_by_run(self, dataset: str, run: str, delta: float) -> float:
        """ε that one run has cost a data set at δ.

        Raises:
            DataError: there is no such data set.
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            _content(session, dataset)
            where = (_shares_budget(session, dataset), ReservationRow.run == run)
            return _epsilon(_mechanisms(session, *where), delta)

    def newest(self, run: str) -> Reservation | None:
        """The highest round of a run that was ever reserved, on any data set; None: none was.

        Raises:
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            row = session.scalar(
                select(ReservationRow)
                .where(ReservationRow.run == run, ReservationRow.kind == _TRAINING)
                .order_by(ReservationRow.round.desc())
                .limit(1)
            )
            return None if row is None else _reservation(row)

    def spent_by_study(self, dataset: str, study_digest: str, delta: float) -> float:
        """ε that all runs of one study have cost a data set at δ.

        Raises:
            DataError: there is no such data set.
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            _content(session, dataset)
            of_study = ReservationRow.study_digest == study_digest
            where = (_shares_budget(session, dataset), of_study)
            return _epsilon(_mechanisms(session, *where), delta)

    def history(self, dataset: str) -> list[Reservation]:
        """Every reservation that counts for a data set, the oldest first.

        Raises:
            DataError: there is no such data set.
            StorageError: the database cannot be read.
        """
        with reading(self._engine) as session:
            _content(session, dataset)
            rows = session.scalars(
                select(ReservationRow)
                .where(_shares_budget(session, dataset))
                .order_by(ReservationRow.id)
            )
            rounds: dict[tuple[str, int, str], list[ReservationRow]] = {}
            for row in rows:
                rounds.setdefault((row.run, row.round, row.dataset), []).append(row)
            return [_reservation(*of_round) for of_round in rounds.values()]


def receipts(
    session: Session, run: str, round_number: int
) -> list[dict[str, str | int | float]]:
    """What stands reserved and settled for a round, as a receipt names it; none: nothing does.

    Each has the study's digest, the kind, and ε's ingredients: unit, noise, sampling rate,
    steps, δ. The data set's name stays at home.
    """
    rows = session.scalars(
        select(ReservationRow)
        .where(
            ReservationRow.run == run,
            ReservationRow.round == round_number,
            ReservationRow.settled_steps.is_not(None),
        )
        .order_by(ReservationRow.id)
    )
    at_home = ("dataset", "run", "round")
    return [{k: v for k, v in _written(row).items() if k not in at_home} for row in rows]


def _check_budget(
    session: Session,
    limits: Iterable[tuple[str, float, ColumnElement[bool]]],
    mechanism: SubsampledGaussian,
    metrics: GaussianRelease | None,
    delta: float,
    unit: str,
) -> None:
    """Rule 4: for each (what, its limit, what counts for it)."""
    planned: list[Mechanism] = [mechanism] if metrics is None else [mechanism, metrics]
    for what, limit, counts in limits:
        if limit == math.inf:
            continue
        before = _mechanisms(session, counts)
        after = _epsilon([*before, *planned], delta)
        if after > limit * _ROUNDING:
            raise BudgetError(
                f"{mechanism.steps} more steps would bring {what} from ε = "
                f"{_epsilon(before, delta):.4g} to {after:.4g}, above its limit of {limit:.4g}, "
                f"at δ = {delta:.3g}, for adding or removing one {unit}.",
                told=f"The privacy budget does not allow {mechanism.steps} more steps here.",
            )


def _check_unit(
    session: Session, shared: ColumnElement[bool], dataset: str, study: Study
) -> None:
    """Rule 7."""
    private = and_(shared, ReservationRow.noise_multiplier > 0)
    others = select(ReservationRow.unit).where(private, ReservationRow.unit != study.unit)
    if (other := session.scalar(others.limit(1))) is not None:
        raise BudgetError(
            f"The ledger of the data set {dataset} counts each {other}, the study each "
            f"{study.unit}: one ε cannot be added to the other.",
            advice="Agree on a study with the unit that the ledger has.",
            told=f"The data set's privacy is not counted for each {study.unit} here.",
        )


def _content(session: Session, dataset: str) -> str:
    sha256 = session.scalar(select(DatasetRow.sha256).where(DatasetRow.name == dataset))
    if sha256 is None:
        raise DataError(
            f"There is no data set {dataset}.",
            advice="`fedpact client dataset list` shows those that were added.",
        )
    return sha256


def _shares_budget(session: Session, dataset: str) -> ColumnElement[bool]:
    """Which reservations count for a data set (rule 5)."""
    identities = [
        (("name", row.name), ("sha256", row.sha256), ("population", row.population))
        for row in session.scalars(select(IdentityRow))
    ]
    shared, size = {("name", dataset)}, 0
    while size != len(shared):
        size = len(shared)
        for identity in identities:
            if not shared.isdisjoint(identity):
                shared.update(identity)
    return ReservationRow.dataset.in_([value for what, value in shared if what == "name"])


def _round(
    session: Session, dataset: str, run: str, round_number: int
) -> Sequence[ReservationRow]:
    """What was reserved for a round: first its training, then its metrics; none: nothing."""
    return session.scalars(
        select(ReservationRow)
        .where(
            ReservationRow.run == run,
            ReservationRow.round == round_number,
            ReservationRow.dataset == dataset,
        )
        .order_by(ReservationRow.id)
    ).all()


def _mechanisms(session: Session, *where: ColumnElement[bool]) -> list[Mechanism | None]:
    """What counts as having run, equal mechanisms as one; None: something without DP."""
    kind, noise, rate = (
        ReservationRow.kind,
        ReservationRow.noise_multiplier,
        ReservationRow.sample_rate,
    )
    steps = func.sum(func.coalesce(ReservationRow.settled_steps, ReservationRow.steps))
    rows = session.execute(
        select(kind, noise, rate, steps).where(*where).group_by(kind, noise, rate)
    )
    return [_mechanism(*row[:3], int(row[3])) for row in rows if row[3] > 0]


def _mechanism(kind: str, noise: float, rate: float, steps: int) -> Mechanism | None:
    """What a row stands for; a kind that is not known is an error, never nothing."""
    if kind == _TRAINING:
        return SubsampledGaussian(noise, rate, steps) if noise > 0 else None
    if kind == _METRICS:
        return GaussianRelease(noise, steps)
    raise StorageError(
        f"The ledger holds a reservation of an unknown kind, {kind}.", advice="Update fedpact."
    )


def _epsilon(mechanisms: Iterable[Mechanism | None], delta: float) -> float:
    private: list[Mechanism] = []
    for mechanism in mechanisms:
        if mechanism is None:
            return math.inf
        private.append(mechanism)
    return accounting.epsilon(private, delta)


def _written(row: ReservationRow) -> dict[str, str | int | float]:
    """A reservation as the transcript has it."""
    return {
        "dataset": row.dataset,
        "study_digest": row.study_digest,
        "kind": row.kind,
        "unit": row.unit,
        "run": row.run,
        "round": row.round,
        "noise_multiplier": row.noise_multiplier,
        "sample_rate": row.sample_rate,
        "steps": row.steps,
        "delta": row.delta,
    }


def _reservation(row: ReservationRow, metrics: ReservationRow | None = None) -> Reservation:
    mechanism = None
    if row.noise_multiplier > 0:
        mechanism = SubsampledGaussian(row.noise_multiplier, row.sample_rate, row.steps)
    release = None
    if metrics is not None:
        release = GaussianRelease(metrics.noise_multiplier, metrics.steps)
    return Reservation(
        id=row.id,
        dataset=row.dataset,
        study_digest=row.study_digest,
        study_name=row.study_name,
        run=row.run,
        round=row.round,
        mechanism=mechanism,
        delta=row.delta,
        reserved_at=row.reserved_at,
        settled_at=row.settled_at,
        settled_steps=row.settled_steps,
        counted_steps=row.steps if row.settled_steps is None else row.settled_steps,
        unit=row.unit,
        metrics=release,
    )
