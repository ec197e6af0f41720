"""The pact at the coordinator: what is proposed, whose decisions count, when a study may run."""

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import inspect, select

from fedpact.common import identity
from fedpact.common.database import open_database
from fedpact.common.errors import RunError, StudyError, TrustError
from fedpact.common.identity import Role
from fedpact.server import pact, pact_tables
from fedpact.server.home import MIGRATIONS
from fedpact.server.roles import COORDINATOR
from fedpact.server.tables import Institution, transaction
from support.pact_factory import SECTORS, Members, pact_study

YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)


@pytest.fixture
def members(database_url):
    engine = open_database(database_url, MIGRATIONS)
    yield Members(engine)
    engine.dispose()


def state(members, study) -> str:
    return members.found(study).standing.state


def test_migrations_make_the_tables_that_the_code_describes(members):
    for table in ("proposals", "decisions"):
        described = pact_tables.Base.metadata.tables[table].columns
        columns = {c["name"]: c["nullable"] for c in inspect(members.engine).get_columns(table)}
        assert columns == {c.name: c.nullable for c in described}


# Proposing


def test_a_proposed_study_comes_back_as_it_was(members):
    study = pact_study()
    members.propose(study, "Lab")
    found = members.found(study)
    assert (found.study, found.proposer, found.decisions) == (study, "Lab", ())
    assert found.standing.state == "proposed"
    assert found.standing.missing == tuple(f"the signature of {n}" for n in sorted(SECTORS))


def test_proposing_the_same_study_again_changes_nothing(members):
    study = pact_study()
    members.propose(study, "Lab")
    members.decide("Maker", "approve", study)
    members.propose(study)
    assert members.found(study).proposer == "Lab"
    assert members.found(study).standing.signed == {"Maker"}


def test_every_changed_byte_is_another_study_that_nobody_has_signed(members):
    study = pact_study()
    members.propose(study)
    members.all_approve(study)
    changed = study.model_copy(
        update={"study": study.study.model_copy(update={"purpose": "another"})}
    )
    members.propose(changed)
    assert state(members, study) == "agreed"
    assert members.found(changed).standing.signed == frozenset()


@pytest.mark.parametrize(
    ("sectors", "reason"),
    [
        ({"Hospital": "academia", "Nobody": "industry"}, "Nobody has not joined"),
        ({"Hospital": "industry"}, "has joined as academia, the study says industry"),
        ({"Lab": "academia"}, "joined as researcher, so it holds no data"),
    ],
)
def test_a_study_is_proposed_only_to_those_who_joined_as_it_says(members, sectors, reason):
    study = pact_study(sectors)
    with pytest.raises(RunError, match=reason):
        members.propose(study)
    with pytest.raises(StudyError, match="never proposed"):
        members.found(study)


def test_a_study_among_nobody_is_not_proposed(members):
    with pytest.raises(StudyError, match="names no institutions"):
        members.propose(pact_study({}))


def test_one_that_was_shut_out_has_not_joined(members):
    with transaction(members.engine) as session:
        row = session.scalars(select(Institution).where(Institution.name == "Maker")).one()
        row.revoked_at = datetime.now(UTC)
    with pytest.raises(RunError, match="Maker has not joined"):
        members.propose(pact_study())


# Deciding


def test_a_decision_is_kept_as_it_was_signed(members):
    study = pact_study()
    members.propose(study)
    decision = members.decide("Agency", "refuse", study, reason="Nicht für Ärzte gedacht.")
    (kept,) = members.found(study).decisions
    assert kept == decision
    kept.check(members.keys["Agency"].public_key())


def test_the_same_decision_again_changes_nothing(members):
    study = pact_study()
    members.propose(study)
    decision = members.decide("Agency", "approve", study)
    members.take(decision)
    assert members.found(study).decisions == (decision,)


def test_an_old_signature_cannot_be_shown_again(members):
    study = pact_study()
    members.propose(study)
    first = members.sign("Agency", "approve", study)
    members.decide("Agency", "withdraw", study)
    with pytest.raises(TrustError, match="newer decision of Agency"):
        members.take(first)
    assert members.found(study).standing.signed == frozenset()


def test_a_replay_of_what_was_taken_back_does_not_bring_it_back(members):
    study = pact_study()
    members.propose(study)
    approved = members.decide("Agency", "approve", study)
    members.decide("Agency", "withdraw", study)
    members.take(approved)
    assert members.found(study).standing.signed == frozenset()


def test_a_decision_from_the_future_is_refused(members):
    study = pact_study()
    members.propose(study)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with pytest.raises(TrustError, match="from the future"):
        members.decide("Agency", "approve", study, moment=tomorrow)


def test_nobody_decides_for_another(members):
    study = pact_study()
    members.propose(study)
    members.keys["Agency"] = members.keys["Maker"]
    with pytest.raises(TrustError, match="not signed with its key"):
        members.decide("Agency", "approve", study)


def test_an_altered_decision_is_refused(members):
    study = pact_study()
    members.propose(study)
    refused = members.sign("Agency", "refuse", study)
    with pytest.raises(TrustError, match="not signed with its key"):
        members.take(refused.model_copy(update={"kind": "approve"}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Hospital", "consent"),
        ("Hospital", "veto"),
        ("Board", "approve"),
        ("Lab", "approve"),
        ("Lab", "veto"),
    ],
)
def test_a_role_decides_only_what_is_its_own(members, name, kind):
    study = pact_study()
    members.propose(study)
    with pytest.raises(TrustError, match=f"cannot {kind}"):
        members.decide(name, kind, study)


def test_a_data_holder_decides_only_where_it_takes_part(members):
    study = pact_study({"Hospital": "academia"})
    members.propose(study)
    with pytest.raises(StudyError, match="Maker does not take part"):
        members.decide("Maker", "approve", study)


def test_who_is_not_known_or_was_shut_out_does_not_decide(members):
    study = pact_study()
    members.propose(study)
    members.keys["Nobody"] = identity.new_signing_key()
    with pytest.raises(TrustError, match="Nobody has not joined"):
        members.decide("Nobody", "approve", study)


def test_what_was_never_proposed_cannot_be_signed(members):
    with pytest.raises(StudyError, match="never proposed"):
        members.decide("Hospital", "approve", pact_study())


def test_what_was_signed_before_being_shut_out_does_not_count(members):
    study = pact_study()
    members.propose(study)
    members.all_approve(study)
    with transaction(members.engine) as session:
        row = session.scalars(select(Institution).where(Institution.name == "Maker")).one()
        row.revoked_at = datetime.now(UTC)
    assert members.found(study).standing.missing == ("the signature of Maker",)
    with transaction(members.engine) as session:
        row = session.scalars(select(Institution).where(Institution.name == "Maker")).one()
        row.revoked_at, row.joined_at = None, datetime.now(UTC)  # invited and joined anew
    assert members.found(study).standing.missing == ("the signature of Maker",)


# How a study stands


def test_a_study_goes_from_proposed_to_ended(members):
    study = pact_study()
    members.propose(study)
    seen = [state(members, study)]
    members.all_approve(study)
    seen.append(state(members, study))
    for step in (pact.start, pact.end):
        with transaction(members.engine) as session:
            step(session, study.digest)
        seen.append(state(members, study))
    assert seen == ["proposed", "agreed", "active", "ended"]
    with pytest.raises(StudyError, match="ended"):
        members.propose(study)
    with pytest.raises(StudyError, match="ended"):
        members.decide("Maker", "approve", study)


def test_what_was_taken_back_is_withdrawn(members):
    study = pact_study()
    members.propose(study)
    members.all_approve(study)
    with transaction(members.engine) as session:
        pact.recall(session, study.digest)
    assert state(members, study) == "withdrawn"
    assert "took it back" in pact.terms(members.engine, study.digest).over


def test_without_the_rule_met_no_run_starts(members):
    study = pact_study()
    members.propose(study)
    members.decide("Hospital", "approve", study)
    members.decide("Maker", "refuse", study, reason="No time.")
    with (
        transaction(members.engine) as session,
        pytest.raises(RunError, match=r"Maker refused \(No time\.\).*signature of Agency"),
    ):
        pact.start(session, study.digest)
    assert state(members, study) == "proposed"


def test_only_an_auditors_consent_is_one(members):
    study = pact_study(auditor_consent=True)
    members.propose(study)
    members.all_approve(study)
    assert members.found(study).standing.missing == ("an auditor's consent",)
    members.decide("Board", "consent", study)
    assert state(members, study) == "agreed"
    members.decide("Board", "veto", study, reason="A complaint came.")
    assert state(members, study) == "withdrawn"
    assert "A complaint came." in pact.terms(members.engine, study.digest).over


def test_the_terms_of_a_run_follow_the_decisions(members):
    study = pact_study(data_holders=2)
    members.propose(study)
    members.all_approve(study)
    with transaction(members.engine) as session:
        pact.start(session, study.digest)
    members.decide("Agency", "withdraw", study)
    terms = pact.terms(members.engine, study.digest)
    assert (terms.willing, terms.over) == ({"Hospital", "Maker"}, "")
    members.decide("Maker", "withdraw", study, reason="Budget.")
    terms = pact.terms(members.engine, study.digest)
    assert terms.willing == {"Hospital"}
    assert "Maker withdrew (Budget.)" in terms.over
    assert state(members, study) == "withdrawn"


def test_after_its_last_day_a_study_may_not_run(members):
    study = pact_study(until=YESTERDAY)
    members.propose(study)
    members.all_approve(study)
    assert f"its last day was {YESTERDAY}" in pact.terms(members.engine, study.digest).over
    today = pact_study(until=date.max)
    members.propose(today)
    members.all_approve(today)
    assert pact.terms(members.engine, today.digest).over == ""


@pytest.mark.parametrize(
    ("kinds", "hope"),
    [
        ({}, True),
        ({"Hospital": "refuse"}, True),
        ({"Hospital": "refuse", "Maker": "refuse"}, False),
        ({"Hospital": "refuse", "Maker": "withdraw", "Agency": "approve"}, False),
        ({"Board": "veto"}, False),
    ],
)
def test_it_is_known_when_waiting_is_in_vain(members, kinds, hope):
    study = pact_study(data_holders=2, auditor_consent=True)
    members.propose(study)
    for name, kind in kinds.items():
        members.decide(name, kind, study)
    assert pact.may_still_be_agreed(members.found(study)) is hope


# Who sees what


def test_a_study_is_shown_to_those_whom_it_concerns(members):
    ours = pact_study({"Hospital": "academia"})
    theirs = pact_study({"Maker": "industry"}, recipients=("Lab",))
    members.propose(ours)
    members.propose(theirs)

    def seen(name: str, role: Role) -> set[str]:
        with transaction(members.engine) as session:
            return {p.study.digest for p in pact.list_for(session, name, role)}

    both = {ours.digest, theirs.digest}
    assert seen("Hospital", Role.DATA_HOLDER) == {ours.digest}
    assert seen("Agency", Role.DATA_HOLDER) == set()
    assert seen("Lab", Role.RESEARCHER) == {theirs.digest}
    assert seen("Board", Role.AUDITOR) == both
    assert seen(COORDINATOR, Role.COORDINATOR) == both


def test_a_study_is_found_by_name_and_by_how_its_digest_begins(members):
    study = pact_study()
    members.propose(study)
    with transaction(members.engine) as session:
        assert pact.find(session, "triage").study == study
        assert pact.find(session, study.digest[:12].upper()).study == study
        with pytest.raises(StudyError, match="No proposed study is 'none'"):
            pact.find(session, "none")
        with pytest.raises(StudyError):
            pact.find(session, "")
