"""Runs as the coordinator remembers them: written by the round loop, read by everyone else.

Each write is one committed transaction, so that whoever reads sees whole steps, and a
coordinator killed between two of them knows on restart where it was.
"""

import logging
import os
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, func, select, update

from fedpact.common import logs
from fedpact.common.adapter import Weights
from fedpact.common.errors import RunError
from fedpact.common.evaluation import Metrics
from fedpact.common.study import Study
from fedpact.common.transcript import Json
from fedpact.common.transcript_store import write
from fedpact.server import artifacts
from fedpact.server.contributions import Contribution
from fedpact.server.diagnostics import Diagnosis
from fedpact.server.round_needs import Answer, ClassCounts
from fedpact.server.run_tables import AnswerRow, RoundRow, RunRow, StudyRow
from fedpact.server.tables import transaction

log = logging.getLogger(__name__)

UNDER_WAY = ("waiting", "running")
RESUMABLE = ("interrupted", "failed")


def create(engine: Engine, study: Study, folder: Path) -> str:
    """Write down a new run of a study.

    Args:
        engine: the coordinator's database.
        study: what is run.
        folder: where the study's own files (its public test set) are.

    Returns:
        the run's identifier.
    """
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    with transaction(engine) as session:
        session.merge(
            StudyRow(
                digest=study.digest,
                name=study.study.name,
                document=study.canonical(),
                folder=str(folder.resolve()),
            )
        )
        session.flush()
        session.add(
            RunRow(
                id=run,
                study_digest=study.digest,
                status="waiting",
                created_at=datetime.now(UTC),
            )
        )
    return run


def study_of(engine: Engine, run: str) -> tuple[Study, Path]:
    """A run's study, and the folder of the study's own files.

    Raises:
        RunError: there is no such run.
    """
    with transaction(engine) as session:
        row = session.scalar(
            select(StudyRow)
            .join(RunRow, RunRow.study_digest == StudyRow.digest)
            .where(RunRow.id == run)
        )
        if row is None:
            raise RunError(f"There is no run {run}.", advice="`fedpact run list` shows them.")
        return Study.from_canonical(row.document), Path(row.folder)


def set_status(
    engine: Engine, run: str, status: str, message: str = "", process: int | None = None
) -> bool:
    """Write down that a run is in another state; one that has ended stays as it ended.

    A run's process may outlive by a moment the coordinator that has called it interrupted, and
    has resumed it. Only a run that waits begins: never two processes conduct it.

    Args:
        engine: the coordinator's database.
        run: which run.
        status: the state.
        message: why it ended.
        process: changes it only while this process conducts it; None: whoever does.

    Returns:
        whether the run was under way (or waited, if it is to run), and is now in that state.
    """
    now = datetime.now(UTC)
    before = ("waiting",) if status == "running" else UNDER_WAY
    values: dict[str, object] = {"status": status, "message": message}
    if status == "running":
        started_at = func.coalesce(RunRow.started_at, now)
        values |= {"started_at": started_at, "process": os.getpid()}
    elif status not in UNDER_WAY:
        values |= {"ended_at": now, "process": None}
    concerned = [RunRow.id == run, RunRow.status.in_(before)]
    if process is not None:
        concerned.append(RunRow.process == process)
    with transaction(engine) as session:
        changed = session.execute(
            update(RunRow).where(*concerned).values(**values).returning(RunRow.id)
        ).all()
        if changed and status not in UNDER_WAY:
            write(session, "run-ended", {"run": run, "status": status, "message": message})
    return bool(changed)


def set_flower_run(engine: Engine, run: str, flower_run: int) -> None:
    """Write down under which number SuperLink knows the run."""
    with transaction(engine) as session:
        session.execute(
            update(RunRow).where(RunRow.id == run).values(flower_run=str(flower_run))
        )


def set_adapter(engine: Engine, run: str, folder: Path) -> None:
    """Write down where the run's adapter is."""
    with transaction(engine) as session:
        session.execute(update(RunRow).where(RunRow.id == run).values(adapter=str(folder)))


def request_stop(engine: Engine, run: str) -> None:
    """Ask a run to stop after the round it is in.

    Raises:
        RunError: there is no such run, or it has ended.
    """
    status = view(engine, run).status
    if status not in UNDER_WAY:
        raise RunError(f"The run {run} has ended already: {status}.")
    with transaction(engine) as session:
        session.execute(update(RunRow).where(RunRow.id == run).values(stop=True))


def interrupt(engine: Engine) -> list["RunView"]:
    """Mark runs that a killed coordinator left under way, and return them."""
    with transaction(engine) as session:
        left = session.scalars(select(RunRow).where(RunRow.status.in_(UNDER_WAY))).all()
        names = [row.id for row in left]
    for run in names:
        ended = sum(1 for r in view(engine, run).rounds if r.seconds is not None)
        message = f"The coordinator ended while the run was under way, after {ended} rounds."
        set_status(engine, run, "interrupted", message)
    return [view(engine, run) for run in names]


def resume(engine: Engine, run: str, *, keep_stop: bool = False) -> None:
    """Have a run that was interrupted or has failed wait to be conducted again.

    Args:
        engine: the coordinator's database.
        run: which run.
        keep_stop: if it was asked to stop before, it stops at once and has its adapter.

    Raises:
        RunError: there is no such run, or it is under way, or it has ended for good.
    """
    values: dict[str, object] = {"status": "waiting", "message": "", "flower_run": ""}
    if not keep_stop:
        values["stop"] = False
    with transaction(engine) as session:
        changed = session.execute(
            update(RunRow)
            .where(RunRow.id == run, RunRow.status.in_(RESUMABLE))
            .values(ended_at=None, **values)
            .returning(RunRow.id)
        ).all()
    if not changed:
        raise RunError(
            f"The run {run} is {view(engine, run).status}: there is nothing to resume.",
            advice="Runs that were interrupted or have failed go on; `fedpact run start` begins one.",
        )


@dataclass(frozen=True, eq=False)
class Reached:
    """What a run has come to.

    Attributes:
        number: of the last round that ended.
        adapter: the adapter after it.
        state: what the server optimiser remembers; None without one.
        clip_norm: to which the next round's updates are clipped; None where they are not.
        measured: whether the adapter was measured on the public test set.
    """

    number: int
    adapter: Weights
    state: Weights | None
    clip_norm: float | None
    measured: bool


def reached(engine: Engine, run: str, folder: Path) -> Reached | None:
    """What a run has come to; None before the end of its first round.

    Raises:
        StorageError: what was kept of it cannot be read, or is not what it was.
    """
    with transaction(engine) as session:
        row = session.scalar(
            select(RoundRow)
            .where(RoundRow.run == run, RoundRow.adapter_digest.is_not(None))
            .order_by(RoundRow.number.desc())
            .limit(1)
        )
        if row is None or row.adapter_digest is None:
            return None
        state = None if row.state_digest is None else artifacts.read(folder, row.state_digest)
        adapter = artifacts.read(folder, row.adapter_digest)
        return Reached(row.number, adapter, state, row.clip_norm, row.loss is not None)


class RunRecord:
    """The `Record` of one run, in the database and the artifact folder.

    Attributes:
        why_stopped: why the agreement ended the run; empty if it did not.
    """

    def __init__(self, engine: Engine, run: str, folder: Path) -> None:
        self._engine = engine
        self._run = run
        self._artifacts = folder
        self._adapter = ""
        self._added: list[tuple[str, str, float]] = []
        self.why_stopped = ""

    def begun(self, weights: Weights, number: int = 1) -> None:
        """Keep the adapter that the run begins with, or goes on with."""
        artifacts.keep(self._artifacts, weights)
        self._adapter = weights.digest
        study, _ = study_of(self._engine, self._run)
        now: dict[str, Json] = {"run": self._run, "adapter": self._adapter}
        with transaction(self._engine) as session:
            if number > 1:
                write(session, "run-resumed", {**now, "round": number})
                return
            terms = {"study_digest": study.digest, "study": study.canonical()}
            write(session, "run-started", {**now, **terms})

    def round_started(
        self, number: int, asked: AbstractSet[str], sent: Mapping[str, str] | None = None
    ) -> None:
        """A round begins and these institutions were asked; begun before, it begins anew."""
        with transaction(self._engine) as session:
            for table in (AnswerRow, RoundRow):
                session.execute(
                    delete(table).where(table.run == self._run, table.number == number)
                )
            session.add(RoundRow(run=self._run, number=number, started_at=datetime.now(UTC)))
            session.add_all(
                AnswerRow(run=self._run, number=number, institution=name, state="asked")
                for name in sorted(asked)
            )
            self._added = []
            now: dict[str, Json] = {"adapter": self._adapter, "asked": sorted(asked)}
            if sent:
                now["sent"] = dict(sent)
            write(session, "round-started", {"run": self._run, "round": number, **now})
        with logs.about(round=number):
            log.info("round %d: %d sites are asked", number, len(asked))

    def admitted(self, number: int, institution: str, change: Weights, weight: float) -> None:
        """Keep a change that counts, so that an audit can aggregate it again."""
        del number
        artifacts.keep(self._artifacts, change)
        self._added.append((institution, change.digest, float(weight)))

    def answered(self, number: int, institution: str, answer: Answer) -> None:
        """An institution's part in the round is decided."""
        with transaction(self._engine) as session:
            session.execute(
                update(AnswerRow)
                .where(
                    AnswerRow.run == self._run,
                    AnswerRow.number == number,
                    AnswerRow.institution == institution,
                )
                .values(**asdict(answer))
            )
            write(
                session,
                "update-received" if answer.state == "updated" else "refused",
                {
                    "run": self._run,
                    "round": number,
                    "institution": institution,
                    **{n: value for n, value in asdict(answer).items() if value is not None},
                },
            )
        with logs.about(round=number, site=institution):
            # The reason is the site's text: it must not look like lines of ours.
            why = " ".join(["", *answer.reason.split()])
            log.info("round %d: %s %s.%s", number, institution, answer.state, why)

    def round_ended(
        self,
        number: int,
        weights: Weights,
        seconds: float,
        state: Weights | None = None,
        diagnosis: Diagnosis | None = None,
        clip_norm: float | None = None,
    ) -> None:
        """The round counts: keep what came of it, named by its digest, then write it down."""
        artifacts.keep(self._artifacts, weights)
        values: dict[str, float | str | None] = asdict(diagnosis) if diagnosis else {}
        made: dict[str, Json] = {
            "before": self._adapter,
            "updates": [
                {"institution": institution, "digest": digest, "weight": weight}
                for institution, digest, weight in self._added
            ],
            "adapter": weights.digest,
        }
        if state is not None:
            artifacts.keep(self._artifacts, state)
            values["state_digest"] = made["state"] = state.digest
        with transaction(self._engine) as session:
            session.execute(
                update(RoundRow)
                .where(RoundRow.run == self._run, RoundRow.number == number)
                .values(
                    seconds=seconds,
                    adapter_digest=weights.digest,
                    clip_norm=clip_norm,
                    **values,
                )
            )
            write(session, "aggregated", {"run": self._run, "round": number, **made})
        self._adapter = weights.digest
        with logs.about(round=number):
            log.info("round %d: ended after %.1f s", number, seconds)

    def measured(
        self,
        number: int,
        metrics: Metrics,
        contributions: Mapping[str, Contribution] | None = None,
    ) -> None:
        """The adapter after this round was measured on the public test set."""
        worth = {name: asdict(one) for name, one in (contributions or {}).items()}
        with transaction(self._engine) as session:
            session.execute(
                update(RoundRow)
                .where(RoundRow.run == self._run, RoundRow.number == number)
                .values(
                    loss=metrics.loss,
                    accuracy=metrics.score,
                    metrics=dict(metrics.more),
                    contributions=worth,
                )
            )

    def should_stop(self) -> bool:
        """Whether someone asked the run to stop."""
        with transaction(self._engine) as session:
            return bool(session.scalar(select(RunRow.stop).where(RunRow.id == self._run)))

    def stopped(self, reason: str) -> None:
        """The agreement does not hold any more: from here on the run is as one asked to stop."""
        self.why_stopped = reason
        with transaction(self._engine) as session:
            session.execute(update(RunRow).where(RunRow.id == self._run).values(stop=True))


@dataclass(frozen=True)
class RoundView:
    """A round as it is shown; `answers` by institution, `accuracy` the mean of the task's score."""

    number: int
    seconds: float | None
    loss: float | None
    accuracy: float | None
    answers: dict[str, Answer]
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    metrics: Mapping[str, float] = field(default_factory=dict)
    contributions: Mapping[str, Contribution] = field(default_factory=dict)


@dataclass(frozen=True)
class RunView:
    """A run as it is shown."""

    id: str
    study: Study
    status: str
    message: str
    flower_run: str
    process: int | None
    adapter: str
    created_at: datetime
    rounds: tuple[RoundView, ...]

    @property
    def is_under_way(self) -> bool:
        """Whether it waits or runs."""
        return self.status in UNDER_WAY

    @property
    def next_round(self) -> int:
        """The round that it is in, or comes to."""
        return 1 + sum(r.seconds is not None for r in self.rounds)


def view(engine: Engine, run: str) -> RunView:
    """A run with its rounds.

    Raises:
        RunError: there is no such run.
    """
    study, _ = study_of(engine, run)
    with transaction(engine) as session:
        row = session.get_one(RunRow, run)
        rounds = session.scalars(
            select(RoundRow).where(RoundRow.run == run).order_by(RoundRow.number)
        ).all()
        answers = defaultdict[int, list[AnswerRow]](list)
        for answer in session.scalars(select(AnswerRow).where(AnswerRow.run == run)):
            answers[answer.number].append(answer)
        return RunView(
            row.id,
            study,
            row.status,
            row.message,
            row.flower_run,
            row.process,
            row.adapter,
            row.created_at,
            tuple(_round_view(r, answers[r.number]) for r in rounds),
        )


def _round_view(row: RoundRow, answers: Sequence[AnswerRow]) -> RoundView:
    return RoundView(
        row.number,
        row.seconds,
        row.loss,
        row.accuracy,
        {
            a.institution: Answer(
                *(a.state, a.reason, a.bytes_in, a.epsilon, a.norm, a.digest),
                *(a.loss, a.accuracy, _counts(a.classes)),
            )
            for a in answers
        },
        Diagnosis(row.averaging_loss, row.mean_cosine),
        row.metrics or {},
        {name: Contribution(**one) for name, one in (row.contributions or {}).items()},
    )


def _counts(stored: dict[str, Any] | None) -> ClassCounts | None:
    if stored is None:
        return None
    return ClassCounts(tuple(stored["right"]), tuple(stored["wrong"]), stored["noise"])


def newest(engine: Engine) -> str | None:
    """The run that was created last; None if there is none yet."""
    with transaction(engine) as session:
        return session.scalar(select(RunRow.id).order_by(RunRow.created_at.desc()).limit(1))


def list_runs(engine: Engine) -> list[RunView]:
    """All runs, the newest first."""
    with transaction(engine) as session:
        names = session.scalars(select(RunRow.id).order_by(RunRow.created_at.desc())).all()
    return [view(engine, name) for name in names]
