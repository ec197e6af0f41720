"""The agreement: signatures over a study's digest, and what the study's rule makes of them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedpact.common import agreement, identity
from fedpact.common.agreement import Decision
from fedpact.common.errors import TrustError
from fedpact.common.study import Study

NAMES = ("Hospital", "Maker", "Agency")
SECTORS = ("academia", "industry", "government")
KEYS = {name: identity.new_signing_key() for name in (*NAMES, "Regulator")}


def study(**governance: object) -> Study:
    return Study.model_validate(
        {
            "study": {"name": "s"},
            "task": {"labels": ["a", "b"]},
            "model": {"base": "m"},
            "governance": governance,
            "institutions": [
                {"name": name, "sector": sector, "records": 100}
                for name, sector in zip(NAMES, SECTORS, strict=True)
            ],
        }
    )


def decide(whom: str, kind: agreement.Kind, about: Study) -> Decision:
    return Decision.make(KEYS[whom], whom, about.digest, kind)


def test_a_study_is_agreed_when_every_data_holder_has_signed():
    asked = study()
    decisions = [decide(name, "approve", asked) for name in NAMES]

    before = agreement.standing(asked, decisions[:2])
    after = agreement.standing(asked, decisions)

    assert (before.state, before.missing) == ("proposed", ("the signature of Agency",))
    assert (after.state, after.missing, after.signed) == ("agreed", (), frozenset(NAMES))
    assert after.may_run


def test_signatures_on_another_study_do_not_count():
    asked, other = study(), study(per_sector=1)
    decisions = [decide(name, "approve", other) for name in NAMES]

    assert agreement.standing(asked, decisions).signed == frozenset()


def test_a_rule_may_want_one_signature_from_each_sector_only():
    asked = study(data_holders=2, per_sector=1)
    two = [decide(name, "approve", asked) for name in NAMES[:2]]

    found = agreement.standing(asked, two)

    assert found.missing == ("1 more signatures from government",)


def test_an_auditor_can_be_waited_for_and_can_veto():
    asked = study(auditor_consent=True)
    signed = [decide(name, "approve", asked) for name in NAMES]
    auditors = frozenset({"Regulator"})

    def with_(*kinds: agreement.Kind) -> agreement.Standing:
        more = [decide("Regulator", kind, asked) for kind in kinds]
        return agreement.standing(asked, [*signed, *more], auditors)

    assert with_().missing == ("an auditor's consent",)
    assert with_("consent").state == "agreed"
    assert with_("consent", "veto").state == "withdrawn"
    assert with_("veto", "consent").state == "agreed"


def test_a_consent_from_someone_who_is_no_auditor_does_not_count():
    asked = study(auditor_consent=True)
    decisions = [decide(name, "approve", asked) for name in NAMES]
    decisions.append(decide("Regulator", "consent", asked))

    assert agreement.standing(asked, decisions, frozenset()).missing


def test_withdrawing_ends_a_study_that_runs_unless_its_rule_still_holds():
    strict, loose = study(), study(data_holders=2)
    for asked, state in ((strict, "withdrawn"), (loose, "active")):
        decisions = [decide(name, "approve", asked) for name in NAMES]
        assert agreement.standing(asked, decisions, started=True).state == "active"

        decisions.append(decide("Agency", "withdraw", asked))

        found = agreement.standing(asked, decisions, started=True)
        assert (found.state, "Agency" in found.signed) == (state, False)


def test_a_study_is_over_after_its_last_day():
    last = datetime(2030, 1, 2, 23, 59, tzinfo=UTC)
    asked = study(until=last.date().isoformat())
    decisions = [decide(name, "approve", asked) for name in NAMES]

    assert agreement.standing(asked, decisions, now=last).state == "agreed"
    assert agreement.standing(asked, decisions, now=last + timedelta(days=1)).state == "ended"


def test_a_decision_is_checked_against_the_institutions_known_key():
    decision = decide("Hospital", "approve", study())

    decision.check(KEYS["Hospital"].public_key())
    with pytest.raises(TrustError, match="not signed with its key"):
        decision.check(KEYS["Maker"].public_key())


@given(st.sampled_from(["study_digest", "institution", "kind", "reason", "moment"]))
def test_a_decision_that_was_altered_is_not_signed(field):
    decision = decide("Hospital", "refuse", study())
    altered = {
        "study_digest": "0" * 64,
        "institution": "Maker",
        "kind": "approve",
        "reason": "because",
        "moment": decision.moment + timedelta(seconds=1),
    }

    with pytest.raises(TrustError):
        decision.model_copy(update={field: altered[field]}).check(KEYS["Hospital"].public_key())


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(["approve", "refuse", "withdraw"])),
        max_size=8,
    )
)
def test_the_newest_decision_of_each_counts(history):
    asked = study(data_holders=1)
    decisions = [decide(name, kind, asked) for name, kind in history]
    expected = {name for name, kind in dict(history).items() if kind == "approve"}

    assert agreement.standing(asked, decisions).signed == expected


@pytest.mark.parametrize("reason", ["\x1b[31mred", "a\x00b", "\u202eevil"])
def test_a_reason_cannot_steer_a_terminal(reason):
    with pytest.raises(ValidationError):
        Decision.make(KEYS["Agency"], "Agency", study().digest, "refuse", reason)
