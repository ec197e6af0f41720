"""The daemon's envoy, at a coordinator that is all there but for the connection."""

import logging
import threading

import pytest

from fedpact.client.agreements import Agreements
from fedpact.client.datasets import Datasets
from fedpact.client.envoy import Envoy
from fedpact.client.home import ClientHome
from fedpact.client.summary import left_to_a_person
from fedpact.common.database import open_database
from fedpact.common.errors import AddressError, PolicyError
from fedpact.common.identity import Role
from fedpact.server import pact
from fedpact.server.home import MIGRATIONS
from fedpact.server.tables import transaction
from support.pact_factory import Members, NearPlane, pact_study
from support.site_factory import MODEL_SHA256, write_csv

NAME = "Hospital"


@pytest.fixture
def members(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'server.db'}", MIGRATIONS)
    yield Members(engine)
    engine.dispose()


@pytest.fixture
def home(tmp_path):
    made = ClientHome(tmp_path / "home")
    Datasets(made.open_database()).add("notes", write_csv(tmp_path / "notes.csv", 120))
    made.policy.write_text('approval = "automatic"\n')
    return made


@pytest.fixture
def envoy(members, home):
    agreements = Agreements(home.open_database())
    return Envoy(
        NAME,
        lambda: members.keys[NAME],
        agreements,
        NearPlane(members, NAME),
        lambda study: left_to_a_person(home, study, NAME),
    )


def allowed(**sections):
    """A study that the policy allows, but for `sections`."""
    document = pact_study().model_dump(mode="json")
    document["model"]["sha256"] = MODEL_SHA256
    for name, fields in sections.items():
        document[name] |= fields
    return type(pact_study()).model_validate(document)


def test_what_the_policy_allows_is_approved_and_sent_by_itself(members, envoy):
    study = allowed()
    members.propose(study)
    envoy.visit()
    assert members.found(study).standing.signed == {NAME}
    envoy.agreements.require(study)
    envoy.visit()
    assert [d.kind for d in envoy.coordinator.taken] == ["approve"]


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"privacy": {"target_epsilon": 11.0}}, "10 that is allowed"),
        ({"privacy": {"mechanism": "none"}}, "no differential privacy"),
        ({"study": {"dataset": "others"}}, "There is no data set others"),
    ],
)
def test_what_the_policy_does_not_allow_is_left_to_a_person_and_said_once(
    members, envoy, caplog, sections, reason
):
    study = allowed(**sections)
    members.propose(study)
    for _ in range(3):
        envoy.visit()
    assert envoy.agreements.unsent() == []
    assert members.found(study).decisions == ()
    (said,) = [r.getMessage() for r in caplog.records if "waits for a person" in r.getMessage()]
    assert reason in said
    with pytest.raises(PolicyError):
        envoy.agreements.require(study)


def test_without_the_rule_a_person_approves(members, envoy, home):
    home.policy.write_text("")
    study = allowed()
    members.propose(study)
    envoy.visit()
    assert members.found(study).decisions == ()
    assert envoy.agreements.list()[0].own is None


def test_what_a_person_refused_is_not_approved_by_itself(members, envoy):
    study = allowed()
    members.propose(study)
    envoy.listen()
    envoy.agreements.decide(envoy.key(), NAME, study, "refuse", "Not ours.")
    envoy.visit()
    (decision,) = members.found(study).decisions
    assert (decision.kind, decision.reason) == ("refuse", "Not ours.")


def test_a_study_that_was_taken_back_is_not_approved(members, envoy):
    study = allowed()
    members.propose(study)
    with transaction(members.engine) as session:
        pact.recall(session, study.digest)
    envoy.visit()
    assert envoy.agreements.list()[0].own is None


def test_withdrawing_acts_at_once_and_is_told_when_the_coordinator_is_back(members, envoy):
    study = allowed()
    members.propose(study)
    envoy.visit()
    envoy.coordinator.away = True
    envoy.agreements.decide(envoy.key(), NAME, study, "withdraw")
    with pytest.raises(AddressError):
        envoy.visit()
    with pytest.raises(PolicyError, match="has withdrawn"):
        envoy.agreements.require(study)
    assert members.found(study).standing.signed == {NAME}
    envoy.coordinator.away = False
    envoy.visit()
    assert members.found(study).standing.signed == frozenset()


def test_a_decision_that_is_not_taken_does_not_hold_up_others(members, envoy, caplog):
    ended, study = allowed(), allowed(study={"name": "another"})
    for each in (ended, study):
        members.propose(each)
    envoy.listen()
    envoy.agreements.decide(envoy.key(), NAME, ended, "approve")
    with transaction(members.engine) as session:
        pact.end(session, ended.digest)
    for _ in range(2):
        envoy.visit()
    assert members.found(study).standing.signed == {NAME}
    said = [r.getMessage() for r in caplog.records if "does not take" in r.getMessage()]
    assert len(said) == 1
    assert "was ended" in said[0]


def test_it_outlives_a_coordinator_that_is_away_and_says_so_once(members, envoy, caplog):
    caplog.set_level(logging.INFO)
    study = allowed()
    members.propose(study)
    stop, visits = threading.Event(), []

    class Rests(threading.Event):
        """Three visits in vain, then one that is not; no time passes."""

        def wait(self, timeout=None):
            visits.append(timeout)
            envoy.coordinator.away = len(visits) < 3
            if len(visits) == 4:
                stop.set()
            return False

    envoy.wake = Rests()
    envoy.coordinator.away = True
    envoy.keep_visiting(stop)
    assert members.found(study).standing.signed == {NAME}
    said = [r.getMessage() for r in caplog.records]
    assert sum("proposals and decisions wait" in words for words in said) == 1
    assert sum("come and go again" in words for words in said) == 1
    # It calls less and less often in vain, and soon again once there was something new.
    assert visits[0] < visits[1] < visits[2]
    assert visits[3] == 2.0


def test_an_auditor_never_approves_by_itself(members, tmp_path):
    study = allowed()
    members.propose(study)
    home = ClientHome(tmp_path / "board")
    home.create()
    home.policy.write_text('approval = "automatic"\n')
    board = Envoy(
        "Board",
        lambda: members.keys["Board"],
        Agreements(home.open_database()),
        NearPlane(members, "Board", Role.AUDITOR),
        lambda study: left_to_a_person(home, study, "Board"),
    )
    board.visit()
    assert board.agreements.list()[0].own is None
    assert members.found(study).decisions == ()
