"""Tables of studies, runs, rounds and what each institution did in them."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from fedpact.server.tables import Base, Moment


class StudyRow(Base):
    """A study that was run, by its digest."""

    __tablename__ = "studies"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    document: Mapped[str] = mapped_column(Text)
    folder: Mapped[str] = mapped_column(Text)


class RunRow(Base):
    """One execution of a study.

    `status`: waiting, running, completed, stopped, failed or interrupted. `stop` is set by
    whoever wants it to stop. `message` says why it ended. `process` is the process that
    conducts it.
    """

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_digest: Mapped[str] = mapped_column(ForeignKey("studies.digest"))
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(Moment)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    ended_at: Mapped[datetime | None] = mapped_column(Moment)
    stop: Mapped[bool] = mapped_column(default=False)
    message: Mapped[str] = mapped_column(Text, default="")
    flower_run: Mapped[str] = mapped_column(String(32), default="")
    process: Mapped[int | None] = mapped_column(Integer)
    adapter: Mapped[str] = mapped_column(Text, default="")


class RoundRow(Base):
    """One round; `seconds` is null while it is under way.

    `accuracy` is the mean of the task's score, whatever it is called; `metrics` what else the task
    measures. `state_digest` names the server optimiser's state after it, `clip_norm` is the norm to
    which the next round's updates are clipped. `averaging_loss` and
    `mean_cosine` are of `fedpact.server.diagnostics.Diagnosis`, and `contributions` has a
    `fedpact.server.contributions.Contribution` for each institution whose update counted.
    """

    __tablename__ = "rounds"

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    started_at: Mapped[datetime] = mapped_column(Moment)
    seconds: Mapped[float | None] = mapped_column(Float)
    loss: Mapped[float | None] = mapped_column(Float)
    accuracy: Mapped[float | None] = mapped_column(Float)
    adapter_digest: Mapped[str | None] = mapped_column(String(64))
    state_digest: Mapped[str | None] = mapped_column(String(64))
    clip_norm: Mapped[float | None] = mapped_column(Float)
    averaging_loss: Mapped[float | None] = mapped_column(Float)
    mean_cosine: Mapped[float | None] = mapped_column(Float)
    metrics: Mapped[dict[str, float] | None] = mapped_column(JSON)
    contributions: Mapped[dict[str, dict[str, float | None]] | None] = mapped_column(JSON)


class AnswerRow(Base):
    """What became of one institution in one round (`fedpact.server.rounds.Answer`)."""

    __tablename__ = "answers"

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    institution: Mapped[str] = mapped_column(String(120), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    bytes_in: Mapped[int] = mapped_column(Integer, default=0)
    epsilon: Mapped[float | None] = mapped_column(Float)
    norm: Mapped[float | None] = mapped_column(Float)
    digest: Mapped[str | None] = mapped_column(String(64))
    loss: Mapped[float | None] = mapped_column(Float)
    accuracy: Mapped[float | None] = mapped_column(Float)
    classes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
