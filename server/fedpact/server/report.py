"""What a run was worth, as far as the coordinator may know.

It has the public test set, and of sites what they let out: noisy metrics where the study asks
for them. What a site would have had alone only the site can know (`fedpact client report`);
a simulation, whose sites are the researcher's own, knows it for all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict
from rich.console import Group
from rich.table import Table

from fedpact.common import figures
from fedpact.common.database import open_database, sqlite_url
from fedpact.common.errors import RunError, UsageError
from fedpact.common.worth import Worth, read_worth
from fedpact.common.worth import table as worth_table
from fedpact.server import runs
from fedpact.server.home import MIGRATIONS, ServerHome
from fedpact.server.runs import RunView


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class SiteCourse(_Part):
    """What a site said of its own records, round by round."""

    site: str
    scores: tuple[float | None, ...]
    """Of the adapter that it received, in each round; None where it said nothing."""
    contributions: tuple[float | None, ...]
    """What its update was worth in each round, as score on the public test set; None where that is
    not known."""
    loss_contributions: tuple[float | None, ...]
    """The same, as loss; above 0 where the update helped."""


class RunReport(_Part):
    """A run's scores, and with a simulation what each site would have had alone."""

    run: str
    study: str
    study_digest: str
    measure: str
    """What the task's score is called."""
    rounds: tuple[int, ...]
    public: tuple[float | None, ...]
    """Score of the shared adapter after each round, on the public test set; None where it was not
    measured."""
    sites: tuple[SiteCourse, ...]
    site_metrics: Literal["none", "private", "raw"]
    """How the sites' numbers were let out: with noise, or raw and NOT PRIVATE."""
    worth: Worth | None
    """Of a simulation that trained its sites alone; None of any other run."""

    @classmethod
    def of(cls, view: RunView, worth: Worth | None) -> Self:
        """The report of a run as it is now.

        Args:
            view: the run.
            worth: what lies in its folder; of another run it is left out.
        """
        study = view.study
        return cls(
            run=view.id,
            study=study.study.name,
            study_digest=study.digest,
            measure=study.task.kind.score,
            rounds=tuple(r.number for r in view.rounds),
            public=tuple(r.accuracy for r in view.rounds),
            sites=tuple(_course(view, one.name) for one in study.institutions),
            site_metrics=study.evaluation.site_metrics,
            worth=worth if worth is not None and worth.run == view.id else None,
        )

    def courses(self) -> tuple[Sequence[int], Mapping[str, Sequence[float | None]]]:
        """The rounds, and every course of scores that is not empty."""
        found = {"public test set": self.public}
        noisy = " (noisy)" if self.site_metrics == "private" else ""
        found |= {f"{one.site}{noisy}": one.scores for one in self.sites}
        known = {name: c for name, c in found.items() if any(a is not None for a in c)}
        return self.rounds, known


def _course(view: RunView, site: str) -> SiteCourse:
    answers = [r.answers.get(site) for r in view.rounds]
    worth = [r.contributions.get(site) for r in view.rounds]
    return SiteCourse(
        site=site,
        scores=tuple(answer and answer.accuracy for answer in answers),
        contributions=tuple(one and one.score for one in worth),
        loss_contributions=tuple(one and one.loss for one in worth),
    )


def read_report(home: Path, simulation: Path | None, run: str | None) -> RunReport:
    """The report of a run of a coordinator, or of a simulation.

    Args:
        home: the coordinator's folder.
        simulation: a simulation's folder, in its place.
        run: which run; None: the newest.

    Raises:
        UsageError: the folder is neither.
        RunError: there is no such run.
        DataError: what a simulation wrote is damaged.
        StorageError: the database cannot be read.
    """
    if simulation is None:
        engine = ServerHome(home).open_database()
    elif (database := simulation / "fedpact.db").is_file():
        engine = open_database(sqlite_url(database.resolve()), MIGRATIONS)
    else:
        raise UsageError(
            f"{simulation} is no simulation's folder.",
            advice="Name what `fedpact simulate --folder` was given.",
        )
    if run is None:
        views = runs.list_runs(engine)
        if not views:
            raise RunError("There are no runs yet.", advice="`fedpact run start` starts one.")
        run = views[0].id
    return RunReport.of(
        runs.view(engine, run), None if simulation is None else read_worth(simulation)
    )


def draw(report: RunReport, path: Path) -> None:
    """Draw what each site gained, or where that is not known the scores over the rounds.

    Raises:
        UsageError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    if report.worth is not None:
        figures.draw_worth(report.worth, path)
    else:
        rounds, courses = report.courses()
        figures.draw_course(
            f"{report.study}: run {report.run}", report.measure, rounds, courses, path
        )


def tables(report: RunReport) -> Group:
    """The report for people."""
    _, courses = report.courses()
    course = Table(title=f"{report.study}: run {report.run}")
    course.add_column(f"{report.measure} on")
    for heading in ("first", "last"):
        course.add_column(heading, justify="right")
    for name, values in courses.items():
        known = _known(values)
        course.add_row(name, f"{known[0]:.3f}", f"{known[-1]:.3f}")
    told = any(_known(one.contributions) for one in report.sites)
    shown = [course, _contributions(report)] if told else [course]
    if report.worth is not None:
        return Group(*shown, worth_table(report.worth))
    asks = (
        "What a site would have had alone only it can know: `fedpact client report RUN` there."
    )
    raw = "Sites' numbers are raw: NOT PRIVATE." if report.site_metrics == "raw" else ""
    return Group(*shown, *filter(None, (raw, asks)))


def _contributions(report: RunReport) -> Table:
    """What each site's updates were worth, on average."""
    table = Table(
        title="What each site's updates were worth",
        caption="on the public test set: the round less the round without the update, and for the "
        "loss the other way round; the mean over rounds that were measured",
    )
    table.add_column("site")
    for heading in (report.measure.replace("_", " "), "loss", "rounds"):
        table.add_column(heading, justify="right")
    for one in report.sites:
        scores, losses = _known(one.contributions), _known(one.loss_contributions)
        table.add_row(one.site, _mean(scores), _mean(losses), str(len(scores)))
    return table


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):+.4f}" if values else ""
