"""Was it worth joining? Each site's score with what it got, and with what it had alone.

The same records are predicted by both, so the difference has a paired standard error: a site
whose difference is within two of them has not been shown to gain or to lose.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from fedpact.common.errors import DataError
from fedpact.common.evaluation import Scores
from fedpact.common.study import Study

FILE = "worth.json"
_SURE = 2.0  # standard errors
Verdict = Literal["gained", "lost", "no clear difference"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Score(_Part):
    """Mean loss, and the mean of the task's score (of classification the share that is right)."""

    loss: float
    score: float

    @classmethod
    def of(cls, scores: Scores) -> Self:
        """The means over some records; at least one."""
        return cls(loss=float(scores.losses.mean()), score=float(scores.scores.mean()))


class Comparison(_Part):
    """What a site could have had, on one set of records. Raw numbers, NOT PRIVATE."""

    records: int
    alone: Score
    """Trained on the site's own records alone, with as many steps."""
    shared: Score | None
    """The shared adapter; None where it cannot predict without what sites keep."""
    personal: Score | None
    """What the study's personalisation made of it at this site; None without."""
    gain: float
    """Score of personal, or of shared where there is none, less that of alone."""
    gain_error: float
    """The standard error of that difference, paired by record."""

    @classmethod
    def of(cls, alone: Scores, shared: Scores | None, personal: Scores | None) -> Self:
        """Compare what was measured on the same records.

        Raises:
            ValueError: there is neither a shared nor a personal adapter.
        """
        joined = personal if personal is not None else shared
        if joined is None:
            raise ValueError("nothing to compare with training alone")
        difference = joined.scores.astype(float) - alone.scores.astype(float)
        count = len(difference)
        return cls(
            records=count,
            alone=Score.of(alone),
            shared=None if shared is None else Score.of(shared),
            personal=None if personal is None else Score.of(personal),
            gain=float(difference.mean()),
            gain_error=float(np.sqrt(difference.var() / count)),
        )

    @property
    def verdict(self) -> Verdict:
        """What the difference shows."""
        if abs(self.gain) <= _SURE * self.gain_error or self.gain == 0:
            return "no clear difference"
        return "gained" if self.gain > 0 else "lost"


class SiteWorth(_Part):
    """One site's answer."""

    site: str
    own: Comparison | None
    """On records of the site's own that nobody trained on; None where there are none."""
    public: Comparison | None
    """On a public test set; None where there is none."""
    share_of_shared: float | None = None
    """How much of the personal adapter began with the shared one, where `interpolate` chose it."""

    @property
    def decisive(self) -> Comparison:
        """The comparison that counts: on the site's own records where there are any.

        Raises:
            ValueError: there is neither.
        """
        found = self.own or self.public
        if found is None:
            raise ValueError("nothing was measured")
        return found


class Worth(_Part):
    """Was it worth joining, for each site. From private data: keep it where it was made."""

    run: str
    study: str
    study_digest: str
    personalisation: str
    measure: str
    """What the task's score is called."""
    alone: Literal["without noise", "with DP"]
    """How sites were trained alone."""
    sites: tuple[SiteWorth, ...]
    losers: tuple[str, ...]
    """Sites whose score is lower than alone, clearly or not; the greatest loss first."""

    @classmethod
    def of(cls, study: Study, run: str, sites: Sequence[SiteWorth], *, private: bool) -> Self:
        """The answers of some sites of a run, and who has lost.

        Args:
            study: that was run.
            run: its identifier.
            sites: one answer for each.
            private: whether sites were trained alone with the noise of the study.
        """
        lost = [s for s in sites if s.decisive.gain < 0]
        return cls(
            run=run,
            study=study.study.name,
            study_digest=study.digest,
            personalisation=study.personalisation.method,
            measure=study.task.kind.score,
            alone="with DP" if private else "without noise",
            sites=tuple(sites),
            losers=tuple(s.site for s in sorted(lost, key=lambda s: s.decisive.gain)),
        )


def read_worth(folder: Path) -> Worth | None:
    """What a simulation has written into its folder; None if it was not asked to.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / FILE
    try:
        return Worth.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def table(worth: Worth) -> Table:
    """One line for each site and set of records."""
    found = Table(
        title=f"{worth.study}: run {worth.run}. Was it worth joining? By {worth.measure}",
        caption=_caption(worth),
        padding=(0, 1, 0, 0),  # at 80 columns no name and no verdict is cut off
    )
    found.add_column("institution", overflow="fold")
    found.add_column("on")
    for heading in ("records", "alone", "shared", "personal", "gain"):
        found.add_column(heading, justify="right", min_width=len(heading))
    found.add_column("", min_width=len("difference"))
    for site in worth.sites:
        for what, compared in (
            ("own test records", site.own),
            ("public test set", site.public),
        ):
            if compared is not None:
                found.add_row(site.site, what, *_cells(compared))
    return found


def _caption(worth: Worth) -> str:
    said = [
        f"Alone: as many steps, {worth.alone}. ± is one standard error, paired by record.",
        f"Lower than alone: {', '.join(worth.losers) or 'none'}.",
    ]
    shares = [
        f"{site.site} {site.share_of_shared:.0%}"
        for site in worth.sites
        if site.share_of_shared is not None
    ]
    if shares:
        named = ", ".join(shares)
        said.append(f"Share of the personal adapter that began with the shared one: {named}.")
    return " ".join(said)


def _cells(compared: Comparison) -> tuple[str, ...]:
    scores = (
        "" if score is None else f"{score.score:.3f}"
        for score in (compared.alone, compared.shared, compared.personal)
    )
    gain = f"{compared.gain:+.3f} ± {compared.gain_error:.3f}"
    return (str(compared.records), *scores, gain, compared.verdict)
