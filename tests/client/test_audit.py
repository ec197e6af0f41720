"""The audit tells sound DP-SGD from DP-SGD with a fault, and sees what the site really runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from _planted import BUGS, PERSON_BUGS, planted
from fedpact.client.audit import Canaries, audit, log_likelihood_ratio
from fedpact.client.audit_cli import audit as command
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.client.trainer import LocalTraining
from fedpact.client.workbench import Workbench
from fedpact.common import accounting, identity, neighbours, tasks
from fedpact.common import model as models
from fedpact.common.errors import BudgetError, DataError, StudyError, TrainingError, UsageError
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.records import EncodedRecords, person_numbers
from fedpact.common.study import Study
from fedpact.common.verdict import Verdict
from support.persons import person_sections, person_study, write_persons
from support.site_factory import INSTITUTION, join_on_paper
from support.tiny_bert import some_rows, write_data

SAMPLED = {"canaries": 2000, "guesses": 100}
WHOLE = {"canaries": 16_000, "guesses": 500}


def study_for(tiny, *, rank, records=120, epsilon=1.0, delta=1e-5, **training):
    return tiny.study(
        adapter={"r": rank, "lora_alpha": rank},
        training=training,
        privacy={"target_epsilon": epsilon, "target_delta": delta},
        institutions=[{"name": INSTITUTION, "sector": "academia", "records": records}],
    )


@pytest.fixture(scope="module")
def sampled(tiny):
    """Six steps in three rounds, a fifth of the records in each."""
    return study_for(tiny, rank=32)


@pytest.fixture(scope="module")
def whole(tiny):
    """One step with every record in it: what an attacker sees is a single Gaussian."""
    return study_for(
        tiny,
        rank=256,
        records=40,
        epsilon=2.0,
        delta=3e-5,
        rounds=1,
        local_steps=1,
        batch_size=40,
    )


# One for each study: the resident model carries nothing from one audit to the next.
BENCHES: dict[str, Workbench] = {}


def encoded(study, tokenizer):
    texts, labels = zip(*some_rows(study.institutions[0].records), strict=True)
    rows = {"text": list(texts), "label": list(labels)}
    return tasks.for_study(study).encode(tokenizer, rows, 12)


def attacked(study, seed=0, **numbers):
    workbench = BENCHES.setdefault(study.digest, Workbench())
    records = encoded(study, workbench.model(study).tokenizer)
    rng = np.random.default_rng(seed)
    return audit(study, INSTITUTION, records, workbench, rng=rng, **numbers)


# What it catches, and what it does not


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(whole, bug):
    with planted(bug):
        found = attacked(whole, **WHOLE)
    assert found.claimed == pytest.approx(2.0, rel=2e-3)  # what the ledger would go on saying
    assert found.contradicted
    assert found.bound > found.claimed


@pytest.mark.parametrize(
    "bug", ["noise switched off", "clipping switched off", "the batch clipped, not the record"]
)
def test_gross_bugs_are_caught_with_few_canaries(sampled, bug):
    with planted(bug):
        found = attacked(sampled, **SAMPLED)
    assert found.correct == 100
    assert found.bound == found.ceiling > 3 * found.claimed


def test_twenty_sound_runs_raise_no_alarm(sampled):
    found = [attacked(sampled, seed, **SAMPLED) for seed in range(20)]
    assert not any(one.contradicted for one in found)
    # Nor is the attack blind: what it sees of sound training is better than a coin.
    assert np.mean([one.correct for one in found]) > 53


def test_a_sound_run_raises_no_alarm_where_half_the_noise_does(whole):
    found = attacked(whole, 1, **WHOLE)
    assert 0.5 < found.bound < found.claimed


# Persons


BY_PERSON = {"canaries": 400, "guesses": 40}
PERSONS = 100


def crowd():
    """400 records that say nothing, four of each person."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 20, 8).tolist() for _ in range(400)]
    names = [f"p{number % PERSONS}" for number in range(400)]
    return EncodedRecords.from_lists(
        ids, rng.integers(0, 2, 400).tolist(), person_numbers(names)
    )


@pytest.fixture(scope="module")
def of_persons(tiny):
    """Six steps with a twentieth of the persons; all of a person's fifty records may be in one."""
    size = {"sector": "academia", "records": 400, "persons": PERSONS}
    return person_study(
        tiny,
        most=50,
        adapter={"r": 32, "lora_alpha": 32},
        training={"batch_size": 5},
        privacy={"target_epsilon": 1.0},
        institutions=[{"name": INSTITUTION, **size}],
    )


def attacked_in_the_crowd(study, seed=0, **numbers):
    workbench = BENCHES.setdefault(study.digest, Workbench())
    rng = np.random.default_rng(seed)
    return audit(study, INSTITUTION, crowd(), workbench, rng=rng, **numbers)


@pytest.mark.parametrize("bug", [*PERSON_BUGS, "noise switched off"])
def test_a_planted_bug_with_persons_is_caught(of_persons, bug):
    with planted(bug):
        found = attacked_in_the_crowd(of_persons, **BY_PERSON)
    assert found.canary_records == 50
    assert found.claimed == found.covered == pytest.approx(1.0, rel=2e-3)
    assert found.contradicted
    assert found.bound > 1.5


def test_epsilon_holds_for_a_person_with_fifty_records(of_persons):
    found = [attacked_in_the_crowd(of_persons, seed, **BY_PERSON) for seed in range(6)]
    assert not any(one.contradicted for one in found)
    assert {one.canary_records for one in found} == {50}


def test_a_promise_to_records_is_less_to_a_person_with_fifty(tiny, of_persons):
    """More is lost than the ε of one record, and less than what follows from it for fifty."""
    study = study_for(
        tiny,
        rank=32,
        records=400,
        epsilon=0.1,
        rounds=1,
        local_steps=1,
        batch_size=400,
    )
    one, fifty = (
        attacked_in_the_crowd(study, canaries=200, guesses=100, canary_records=k)
        for k in (1, 50)
    )
    assert one.bound < one.claimed == one.covered == pytest.approx(0.1, rel=2e-3)
    assert fifty.claimed == one.claimed
    sigma = accounting.noise_multiplier(0.1, 1e-5, 1.0, 1)
    whole = SubsampledGaussian(sigma, 1.0, 1)
    assert fifty.covered == neighbours.person_epsilon(whole, 50, 1e-5)
    assert 10 * fifty.claimed < fifty.bound < fifty.covered
    assert not fifty.contradicted
    # Nothing of the kind, of the same persons, where the promise is to them.
    document = of_persons.model_dump()
    document["training"] |= {"rounds": 1, "local_steps": 1, "batch_size": PERSONS}
    document["privacy"]["target_epsilon"] = 0.1
    alike = Study.model_validate(document)
    kept = attacked_in_the_crowd(alike, canaries=200, guesses=100)
    assert (kept.claimed, kept.canary_records) == (pytest.approx(0.1, rel=2e-3), 50)
    assert kept.bound < kept.claimed


def test_it_must_be_known_whose_the_records_are(of_persons):
    nobodys = replace(crowd(), persons=None)
    with pytest.raises(DataError, match="whose"):
        audit(of_persons, INSTITUTION, nobodys, Workbench(), canaries=10, guesses=10)


# What it attacks


def test_it_claims_what_the_ledger_would_count(sampled, tmp_path):
    found = attacked(sampled, **SAMPLED)
    engine = ClientHome(tmp_path / "home").open_database()
    Datasets(engine).add("notes", write_data(tmp_path / "notes.csv"))
    ledger, delta = Ledger(engine), sampled.privacy.target_delta
    sigma = accounting.noise_multiplier(1.0, delta, 0.2, 6)
    for number in (1, 2, 3):
        step = SubsampledGaussian(sigma, 0.2, 2)
        ledger.reserve("notes", sampled, "r1", number, step, cap=10.0)
    assert found.claimed == pytest.approx(ledger.spent("notes", delta))


def test_canaries_are_orthogonal_and_each_is_found_along_itself():
    rng = np.random.default_rng(0)
    canaries = Canaries.draw(50, 1030, rng)
    gradients = canaries.gradients(np.arange(50), 1030)
    np.testing.assert_allclose(gradients @ gradients.T, np.eye(50), atol=1e-6)
    some = canaries.gradients(np.array([-1, 7, -1, 3]), 1030)
    np.testing.assert_array_equal(some, [np.zeros(1030), gradients[7], some[0], gradients[3]])
    seen = canaries.along(2 * gradients[7] - gradients[3])
    np.testing.assert_allclose(
        seen, 2.0 * (np.arange(50) == 7) - (np.arange(50) == 3), atol=1e-6
    )


def test_the_evidence_is_the_ratio_of_the_two_densities():
    step = SubsampledGaussian(1.5, 0.3, 1)
    seen = np.array([-2.0, 0.0, 0.7, 3.0])

    def density(mean):
        return np.exp(-((seen - mean) ** 2) / (2 * 1.5**2))

    expected = np.log((0.7 * density(0) + 0.3 * density(1)) / density(0))
    np.testing.assert_allclose(log_likelihood_ratio(seen, step), expected)
    # Two whole steps are one with a canary twice as long and twice the variance.
    both = log_likelihood_ratio(seen, SubsampledGaussian(1.5, 1.0, 2))
    np.testing.assert_allclose(both, (2 * seen - 2) / (2 * 1.5**2))


def test_the_resident_model_trains_after_an_audit_as_before(sampled):
    model = BENCHES.setdefault(sampled.digest, Workbench()).model(sampled)
    mechanism = SubsampledGaussian(1.0, 0.2, 2)
    how = LocalTraining.from_study(sampled, INSTITUTION, mechanism, model.device)
    received = models.initial_weights(model.module, 0)
    records = encoded(sampled, model.tokenizer)

    def change():
        return model.trainer.train(received, records, how, np.random.default_rng(3)).change.flat

    before = change()
    attacked(sampled, **SAMPLED)
    np.testing.assert_array_equal(change(), before)


# What it refuses


def test_numbers_that_do_not_fit(sampled):
    with pytest.raises(UsageError, match="5000 canaries do not fit in 4162"):
        attacked(sampled, canaries=5000, guesses=10)
    with pytest.raises(UsageError, match="11 guesses"):
        attacked(sampled, canaries=10, guesses=11)
    with pytest.raises(UsageError, match="confidence"):
        attacked(sampled, canaries=10, guesses=10, confidence=1.0)


def test_there_must_be_a_claim_and_records(tiny, sampled):
    open_study = tiny.study(privacy={"mechanism": "none"})
    with pytest.raises(StudyError, match="promises no ε"):
        attacked(open_study, canaries=10, guesses=10)
    nobody = tasks.for_study(sampled).encode(None, {"text": [], "label": []}, 12)
    with pytest.raises(DataError, match="no records"):
        audit(sampled, INSTITUTION, nobody, Workbench(), canaries=10, guesses=10)


# As a steward types it


@pytest.fixture
def typed(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FEDPACT_CLIENT_HOME", str(tmp_path / "home"))
    home = ClientHome(tmp_path / "home")
    Datasets(home.open_database()).add("notes", write_data(tmp_path / "notes.csv"))
    study = tiny.write_study(
        tmp_path / "study.toml",
        adapter={"r": 16},
        training={"local_steps": 1, "batch_size": 120, "rounds": 1},
    )
    app = typer.Typer()
    app.command()(command)

    def run(*words):
        words = (str(study), "--institution", INSTITUTION, "--shadows", "2", *words)
        return CliRunner().invoke(app, words)

    return run, home


def test_the_command_says_what_was_found_and_spends_nothing(typed):
    run, home = typed
    result = run("--epsilon", "1", "--canaries", "1000", "--guesses", "100", "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["claimed_epsilon"] == pytest.approx(1.0, rel=2e-3)
    assert found["lower_bound"] < 1.0 < found["ceiling"]
    assert (found["unit"], found["delta"]) == ("record", 1e-5)
    assert found["neighbours"] == "add or remove one record"
    assert (found["canaries"], found["guesses"]) == (1000, 100)
    assert (found["canary_records"], found["covered_epsilon"]) == (1, found["claimed_epsilon"])
    assert not found["contradicted"]
    assert found["membership"]["units"] == 120
    assert 0 <= found["membership"]["likelihood_ratio"]["auc"] <= 1
    assert "does not contradict" in found["verdict"]
    assert Ledger(home.open_database()).history("notes") == []
    assert list(home.outbox.iterdir()) == []


def test_the_command_attacks_whole_persons_and_says_so(tmp_path, tiny, typed):
    run, home = typed
    Datasets(home.open_database()).add("people", write_persons(tmp_path / "people.csv"))
    tiny.write_study(
        tmp_path / "study.toml",
        **person_sections(training={"local_steps": 1, "rounds": 1, "batch_size": 30}),
    )
    words = ("--dataset", "people", "--epsilon", "1", "--canaries", "100", "--guesses", "20")
    found = json.loads(run(*words, "--format", "json").stdout)
    assert (found["unit"], found["canary_records"]) == ("person (who)", 50)
    assert found["neighbours"] == "add or remove one person (who)"
    assert found["membership"]["units"] == 30
    assert not found["contradicted"]
    assert "50 records each" in run(*words).stdout


def test_the_command_says_what_a_promise_to_records_is_to_a_person(typed):
    run, _ = typed
    words = (
        "--epsilon",
        "0.1",
        "--canaries",
        "200",
        "--guesses",
        "100",
        "--canary-records",
        "50",
    )
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "for a person with 50 records" in result.stdout
    assert "does not hold for such a person" in " ".join(result.stdout.split())


def test_the_command_fails_when_the_claim_is_contradicted(typed):
    run, _ = typed
    with planted("noise switched off"):
        result = run("--epsilon", "1", "--canaries", "1000", "--guesses", "100")
    assert isinstance(result.exception, TrainingError)
    assert result.exception.exit_code == 20
    assert "is broken: ε is above 3.4" in result.stdout
    assert "nothing was sent and nothing spent" in result.stdout


def test_the_command_says_when_nothing_could_have_been_shown(typed):
    run, _ = typed
    result = run("--canaries", "200")  # the study's ε is 8
    assert result.exit_code == 0
    assert "nothing could have" in result.stdout


def test_a_verdict_is_saved_signed_and_stays_in_the_house(typed, tmp_path):
    run, home = typed
    key = identity.new_signing_key()
    join_on_paper(home, key)
    file = tmp_path / "verdict.json"
    quick = ("--epsilon", "1", "--canaries", "200", "--guesses", "20", "--shadows", "0")
    result = run(*quick, "--save", str(file), "--format", "json")
    assert result.exit_code == 0, result.output
    found, verdict = (
        json.loads(result.stdout),
        Verdict.read(file.read_text(), key.public_key()),
    )
    assert not verdict.releasable
    assert verdict.membership_auc == found["membership"]["loss"]["auc"]
    assert (verdict.lower_bound, verdict.correct) == (found["lower_bound"], found["correct"])
    assert Ledger(home.open_database()).history("notes") == []


def test_a_verdict_that_others_may_see_is_paid_for_first_and_holds_nothing_unpaid(
    typed, tmp_path
):
    run, home = typed
    key = identity.new_signing_key()
    join_on_paper(home, key)
    file, ledger = tmp_path / "verdict.json", Ledger(home.open_database())
    quick = ("--epsilon", "1", "--canaries", "200", "--guesses", "20", "--shadows", "0")
    released = (*quick, "--save", str(file), "--release")
    home.policy.write_text("max_epsilon = 0.5\n", encoding="utf-8")
    refused = run(*released)
    assert isinstance(refused.exception, BudgetError)
    assert not file.exists()
    home.policy.write_text("max_epsilon = 1.2\n", encoding="utf-8")
    assert run(*released).exit_code == 0
    verdict = Verdict.read(file.read_text(), key.public_key())
    assert verdict.releasable
    assert verdict.membership_auc is None
    assert ledger.spent("notes", verdict.delta) == pytest.approx(
        verdict.claimed_epsilon, rel=1e-6
    )
    assert isinstance(run(*released).exception, BudgetError), "twice is paid twice"
