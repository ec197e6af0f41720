"""What a site was shown and signed: its own word, from its own database."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpact.client.agreements import Agreements, Heard
from fedpact.client.home import MIGRATIONS, ClientHome
from fedpact.common import agreement, identity
from fedpact.common.database import open_database
from fedpact.common.errors import PolicyError, StudyError
from support.site_factory import INSTITUTION, a_study

KEY = identity.new_signing_key()
HEARD = Heard(proposer="coordinator", proposed_at=datetime.now(UTC), state="proposed")


@pytest.fixture
def agreements(database_url):
    engine = open_database(database_url, MIGRATIONS)
    yield Agreements(engine)
    engine.dispose()


def decide(agreements, kind, study, reason=""):
    return agreements.decide(KEY, INSTITUTION, study, kind, reason)


def test_what_was_never_signed_is_not_agreed_to(agreements):
    study = a_study()
    agreements.hear(study, HEARD)
    with pytest.raises(PolicyError, match="has not signed"):
        agreements.require(study)


def test_what_was_approved_is_agreed_to_and_nothing_else(agreements):
    study, other = a_study(), a_study(study={"purpose": "another"})
    decide(agreements, "approve", study)
    agreements.require(study)
    with pytest.raises(PolicyError, match="has not signed"):
        agreements.require(other)


def test_a_decision_holds_after_a_restart(tmp_path):
    home = ClientHome(tmp_path / "home")
    decide(Agreements(home.open_database()), "approve", a_study())
    Agreements(home.open_database()).require(a_study())


@pytest.mark.parametrize("kind", ["refuse", "withdraw", "veto", "consent"])
def test_anything_but_approve_is_no(agreements, kind):
    study = a_study()
    decide(agreements, "approve", study)
    decide(agreements, kind, study)
    with pytest.raises(PolicyError, match="This institution h"):
        agreements.require(study)


def test_the_last_day_is_the_last(agreements):
    study = a_study(governance={"until": "2026-06-30"})
    decide(agreements, "approve", study)
    agreements.require(study, today=date(2026, 6, 30))
    with pytest.raises(PolicyError, match=r"last day of the study .* was 2026-06-30"):
        agreements.require(study, today=date(2026, 7, 1))


@settings(deadline=None, max_examples=25)
@given(
    kinds=st.lists(st.sampled_from(["approve", "refuse", "withdraw"]), min_size=1, max_size=6)
)
def test_the_newest_decision_counts_here_as_it_does_for_everyone(tmp_path_factory, kinds):
    engine = ClientHome(tmp_path_factory.mktemp("site")).open_database()
    agreements, study = Agreements(engine), a_study()
    decisions = [decide(agreements, kind, study) for kind in kinds]
    try:
        agreements.require(study)
        agreed = True
    except PolicyError:
        agreed = False
    # Whoever gets the signatures in whatever order comes to the same.
    standing = agreement.standing(study, reversed(decisions))
    assert agreed == (INSTITUTION in standing.signed) == (kinds[-1] == "approve")
    engine.dispose()


def test_a_later_decision_is_later_even_if_the_clock_was_set_back(agreements, monkeypatch):
    study = a_study()
    first = decide(agreements, "approve", study)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):
            return first.moment - timedelta(hours=2)

    monkeypatch.setattr("fedpact.client.agreements.datetime", Earlier)
    second = decide(agreements, "withdraw", study)
    assert second.moment > first.moment
    second.check(KEY.public_key())


def test_the_newest_decision_waits_until_it_was_sent(agreements):
    study, other = a_study(), a_study(study={"name": "other"})
    decide(agreements, "approve", study)
    first, second = decide(agreements, "refuse", other), decide(agreements, "withdraw", study)
    assert agreements.unsent() == [first, second]
    agreements.sent(first)
    assert agreements.unsent() == [second]
    agreements.sent(second)
    assert agreements.unsent() == []


def test_what_was_shown_comes_back_with_what_was_last_heard_of_it(agreements):
    study = a_study()
    assert agreements.hear(study, HEARD) is True
    assert agreements.hear(study, HEARD) is False
    active = HEARD.model_copy(update={"state": "active"})
    assert agreements.hear(study, active) is True
    own = decide(agreements, "approve", study)
    (shown,) = agreements.list()
    assert (shown.study, shown.heard, shown.own) == (study, active, own)


def test_a_study_is_found_by_name_and_by_how_its_digest_begins(agreements):
    study, other = a_study(), a_study(study={"name": "other"})
    for each in (study, other):
        agreements.hear(each, HEARD)
    assert agreements.find("other").study == other
    assert agreements.find(study.digest[:12]).study == study
    agreements.hear(a_study(study={"purpose": "changed"}), HEARD)
    with pytest.raises(StudyError, match="More than one study shown here is 'triage'"):
        agreements.find("triage")
    for nothing in ("", "nothing", "f" * 64):
        with pytest.raises(StudyError, match="No study shown here"):
            agreements.find(nothing)
