"""`fedpact client doctor`: everything that must be right for a site to serve, each on its own.

(1) Checks stand in the order in which a person would mend what they find. (2) A check whose
premise failed is skipped: it could only say the same again. (3) A check changes nothing: not
the database, not what the coordinator sees, not a file. (4) What is wrong comes with what to
do about it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Literal

from fedpact.client.dial import Shown, look
from fedpact.client.home import ClientHome
from fedpact.client.join import JoinedSite, SiteSettings, load_site, read_settings
from fedpact.client.service import Service
from fedpact.common.errors import FedpactError
from fedpact.common.study_learning import BaseModelRef
from fedpact.common.v1.federation_pb2 import StatusRequest, StatusResponse

_CALL_SECONDS = 10.0

State = Literal["ok", "warn", "wrong", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        state: ok; warn: it works, but not for ever or not well; wrong: it does not work;
            skipped: what it builds on is wrong.
        found: one sentence or less.
        advice: what to do; empty if there is nothing to do.
    """

    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Patient:
    """The site that is examined, and what several checks look at.

    Attributes:
        home: the site's folder.
        models: base models that must be at hand.
        clock_ahead: how far this machine's clock is moved on for the examination; for tests.
    """

    home: ClientHome
    models: Sequence[BaseModelRef] = ()
    clock_ahead: timedelta = timedelta(0)

    @property
    def now(self) -> datetime:
        """This machine's time, in UTC."""
        return datetime.now(UTC) + self.clock_ahead

    @cached_property
    def settings(self) -> SiteSettings:
        """What joining wrote down."""
        return read_settings(self.home)

    @cached_property
    def site(self) -> JoinedSite:
        """What joining left, with its keys."""
        return load_site(self.home)

    @cached_property
    def shown(self) -> Shown:
        """What the coordinator shows to anyone."""
        return look(self.settings.coordinator)

    @cached_property
    def status(self) -> StatusResponse:
        """What the coordinator tells this institution of itself."""
        with Service(self.site, timeout=_CALL_SECONDS) as service:
            answer: StatusResponse = service.federation.Status(StatusRequest())
        return answer


@dataclass(frozen=True)
class Check:
    """A check: its name, what it does, and the checks without which it says nothing."""

    name: str
    examine: Callable[[Patient], Finding]
    after: tuple[str, ...] = ()


def checks() -> tuple[Check, ...]:
    """All checks, in order."""
    from fedpact.client import doctor_here as here
    from fedpact.client import doctor_there as there

    return (
        Check("joined", here.joined),
        Check("keys", here.keys, ("joined",)),
        Check("proxy", there.proxy, ("joined",)),
        Check("name", there.name, ("joined",)),
        Check("connection", there.connection, ("joined", "proxy", "name")),
        Check("identity", there.identity, ("connection",)),
        Check("certificates", there.certificates, ("identity",)),
        Check("clock", there.clock, ("connection",)),
        Check("control plane", there.control_plane, ("keys", "certificates", "clock")),
        Check("versions", there.versions, ("control plane",)),
        Check("SuperLink", there.superlink, ("keys", "certificates", "clock")),
        Check("disk", here.disk),
        Check("database", here.database),
        Check("policy", here.policy),
        Check("data sets", here.datasets, ("database",)),
        Check("models", here.models),
        Check("device", here.device),
    )


def examine(patient: Patient) -> dict[str, Finding]:
    """Run all checks; what each found, by its name and in order."""
    findings: dict[str, Finding] = {}
    for check in checks():
        missing = [n for n in check.after if findings[n].state in {"wrong", "skipped"}]
        if missing:
            findings[check.name] = Finding("skipped", f"first mend: {', '.join(missing)}")
            continue
        try:
            findings[check.name] = check.examine(patient)
        except FedpactError as error:
            findings[check.name] = Finding("wrong", error.message, error.advice)
    return findings
