"""The plan of a study: what sites will compute, before they do."""

import json
from io import StringIO

import pytest
import tomli_w
from rich.console import Console
from typer.testing import CliRunner

from fedpact.common.errors import BudgetError, StudyError
from fedpact.common.planned import plan as site_plan
from fedpact.common.planned import plan_metrics
from fedpact.common.study import Study
from fedpact.simulations import planning
from fedpact.simulations.cli import app
from support.persons import PERSONS, person_study
from support.round_fakes import study_among
from support.site_factory import INSTITUTION
from support.tiny_bert import write_data

SMALL = {"training": {"rounds": 4, "local_steps": 2, "batch_size": 50}}


@pytest.fixture(scope="module")
def study() -> Study:
    return study_among("Ärzte", "B", records=500, **SMALL)


@pytest.fixture(scope="module")
def found(study) -> planning.StudyPlan:
    return planning.of(study, planning.plan(study))


def test_the_noise_is_the_one_that_the_site_will_add(study, found):
    for site in found.sites:
        mechanism = site_plan(study, site.name)
        assert (site.noise_multiplier, site.sample_rate) == (
            mechanism.noise_multiplier,
            mechanism.sample_rate,
        )
        assert site.steps == study.training.rounds * mechanism.steps
        assert site.noise_per_record == pytest.approx(mechanism.noise_multiplier / 50)


def test_what_else_the_run_would_mean_is_in_the_order_that_it_must_be(found):
    for site in found.sites:
        assert 0.98 * found.target_epsilon < site.epsilon <= found.target_epsilon
        persons = [site.epsilon_of_person[n] for n in planning.PERSON_RECORDS]
        assert site.epsilon < site.epsilon_replace_one < persons[0] < persons[1] < persons[2]
        assert site.epsilon < site.epsilon_twice_the_rounds < 2 * site.epsilon
        assert site.noise_twice_the_rounds > site.noise_multiplier


def test_it_says_what_a_promise_to_records_is_to_a_person_with_as_many_as_asked(tmp_path):
    small = study_among(
        "A",
        records=500,
        training={"rounds": 1, "local_steps": 1, "batch_size": 500},
        privacy={"target_epsilon": 0.1},
    )
    words = ["study", "plan", str(write(tmp_path, small)), "--format=json"]
    done = CliRunner().invoke(app, [*words, "--person-records=3", "--person-records=50"])
    assert done.exit_code == 0, done.output
    found = planning.StudyPlan.model_validate_json(done.stdout)
    (site,) = found.sites
    assert list(site.epsilon_of_person) == [3, 50]
    assert site.epsilon < site.epsilon_of_person[3] < site.epsilon_of_person[50]
    console = Console(file=StringIO(), width=200)
    console.print(planning.tables(found))
    assert "person with 50" in console.file.getvalue()


def test_private_metrics_are_in_the_plan(found):
    paying = study_among("A", records=500, evaluation={"site_metrics": "private"}, **SMALL)
    (site,) = planning.plan(paying)
    assert site.noise_multiplier == site_plan(paying, "A").noise_multiplier
    assert site.noise_multiplier > found.sites[0].noise_multiplier
    assert 0.98 * found.target_epsilon < site.epsilon <= found.target_epsilon
    assert site.epsilon < site.epsilon_replace_one < site.epsilon_of_person[2]
    assert site.noise_twice_the_rounds > site.noise_multiplier


def test_the_plan_says_what_metrics_cost_and_how_wide_their_noise_is(tiny):
    plain, classes = (
        person_study(tiny, evaluation={"site_metrics": "private", "per_class": by_class})
        for by_class in (False, True)
    )
    (one,), (other,) = planning.plan(plain), planning.plan(classes)
    assert one.metrics_epsilon == pytest.approx(0.05 * 8.0, rel=0.01)
    assert one.metrics_epsilon == other.metrics_epsilon < one.epsilon <= 8.0
    # Persons are expected, not records: a tenth of 30.
    noise = plan_metrics(plain).noise_multiplier
    assert one.accuracy_noise == pytest.approx(noise * 0.5**0.5 / 3)
    assert one.count_noise is None
    assert other.count_noise == pytest.approx(noise * 1.5**0.5)
    assert other.accuracy_noise == pytest.approx(other.count_noise / 3)
    console = Console(file=StringIO(), width=300)
    console.print(planning.tables(planning.of(classes, [other])))
    assert "private metrics alone cost 0.3998" in console.file.getvalue()
    assert "each count by class" in console.file.getvalue()


def test_a_budget_that_cannot_buy_it_is_said_for_each_site():
    poor = study_among("A", "B", privacy={"target_epsilon": 1e-4}, **SMALL)
    for site in planning.plan(poor):
        assert "No noise lets 8 steps" in site.why
        assert site.noise_multiplier is None


def test_a_study_without_dp_has_no_noise_to_plan():
    bare = study_among("A", privacy={"mechanism": "none"}, **SMALL)
    plan = planning.of(bare, planning.plan(bare))
    assert plan.target_epsilon is None
    assert [(s.noise_multiplier, s.why) for s in plan.sites] == [(None, "")]


def test_a_study_without_institutions_cannot_be_planned():
    with pytest.raises(StudyError, match="names no institutions"):
        list(planning.plan(study_among()))


def write(folder, study: Study):
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(study.model_dump(mode="json", exclude_none=True)))
    return path


def test_the_command_prints_one_object(tmp_path, study, found):
    done = CliRunner().invoke(
        app, ["study", "plan", str(write(tmp_path, study)), "--format=json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(found.model_dump_json())


def test_the_command_fails_where_the_budget_cannot_buy_the_plan(tmp_path):
    poor = study_among("Ärzte", privacy={"target_epsilon": 1e-4}, **SMALL)
    done = CliRunner().invoke(app, ["study", "plan", str(write(tmp_path, poor))])
    assert isinstance(done.exception, BudgetError)
    assert "Ärzte" in done.exception.message
    assert "No noise lets" in done.stdout


def test_a_simulation_says_what_accuracy_to_expect(tmp_path, tiny):
    data = write_data(tmp_path / "data.csv", records=200, seed=1)
    public = write_data(tmp_path / "public.csv", records=60, seed=2)
    institutions = [{"name": n, "sector": "academia", "records": 100} for n in ("A", "B")]
    path = tiny.write_study(
        tmp_path / "study.toml",
        institutions=institutions,
        training={"rounds": 2},
        evaluation={"data": public.name},
    )
    done = CliRunner().invoke(
        app, ["study", "plan", str(path), f"--data={data}", "--format=json"]
    )
    assert done.exit_code == 0, done.output
    assert 0 <= json.loads(done.stdout)["accuracy"] <= 1


def test_a_plan_for_persons_is_by_persons_and_says_what_records_would_cost(tiny):
    study = person_study(tiny)
    (site,) = planning.plan(study)
    mechanism = site_plan(study, INSTITUTION)
    assert (site.sample_rate, site.noise_multiplier) == (
        10 / PERSONS,
        mechanism.noise_multiplier,
    )
    assert site.epsilon_of_person is None
    assert site.noise_for_records < site.noise_multiplier
    shown = planning.of(study, [site])
    assert shown.unit == "person (who)"
    console = Console(file=StringIO(), width=200)
    console.print(planning.tables(shown))
    assert "adding or removing one person (who)" in console.file.getvalue()
