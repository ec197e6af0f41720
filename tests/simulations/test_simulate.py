"""A study among simulated sites: the same code, the same promise, and the same again by seed."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.common import study as studies
from fedpact.common.adapter import Weights
from fedpact.common.errors import DataError, ModelError, StudyError, UsageError
from fedpact.common.study import Study
from fedpact.simulations import federation as federations
from fedpact.simulations.cli import app
from fedpact.simulations.simulate import Simulation, run_simulation, simulate
from support.persons import person_sections, write_persons
from support.tiny_bert import write_data

SITES = 3


@pytest.fixture
def study_file(tiny, tmp_path) -> Path:
    write_data(tmp_path / "public.csv", records=60, seed=99)
    write_data(tmp_path / "data.csv", records=180)
    return tiny.write_study(
        tmp_path / "study.toml",
        training={"rounds": 2},
        evaluation={"data": "public.csv"},
    )


@pytest.fixture
def run(study_file, tmp_path):
    """Simulate, in a folder of its own each time."""
    folders = iter(range(100))

    def simulated(**asked):
        folder = asked.pop("folder", tmp_path / f"run-{next(folders)}")
        asked = {"study": study_file, "sites": SITES, "folder": folder, **asked}
        return simulate(Simulation(**asked), Console(file=StringIO()))

    return simulated


def digest(result) -> str:
    return Weights.from_tensors(
        load_file(Path(result.adapter) / "adapter_model.safetensors")
    ).digest


def test_a_simulation_keeps_the_promise_of_its_study(run, tmp_path):
    result, view = run()
    assert (result.status, [r.sites for r in result.rounds]) == ("completed", [SITES] * 2)
    assert all(r.accuracy is not None for r in result.rounds)
    assert [site.name for site in result.sites] == ["site-01", "site-02", "site-03"]
    folders = sorted((tmp_path / "run-0" / "sites").iterdir())
    for site, folder in zip(result.sites, folders, strict=True):
        assert 0.98 * 8 < site.epsilon <= 8
        assert folder.name.endswith(site.name)
        ledger = Ledger(ClientHome(folder).open_database())
        assert ledger.spent(federations.DATA, site.delta) == site.epsilon
        assert site.bytes_out > 0
    assert [i.records for i in view.study.institutions] == [60] * 3


def test_more_rounds_cost_more_until_the_promise_is_spent(run):
    _, view = run()
    spent = [r.answers["site-01"].epsilon for r in view.rounds]
    assert 0 < spent[0] < spent[1] <= 8


def test_the_same_seed_gives_the_same_adapter_and_another_gives_another(run):
    first, again, other = (run(seed=seed)[0] for seed in (1, 1, 2))
    assert digest(first) == digest(again) != digest(other)
    assert [r.loss for r in first.rounds] == [r.loss for r in again.rounds]
    # The noise, not only the dealing, follows the seed.
    assert first.rounds[0].loss != other.rounds[0].loss


def test_sites_do_not_draw_the_same_noise(run):
    _, view = run()
    for kept in view.rounds:
        assert len({answer.digest for answer in kept.answers.values()}) == SITES


def test_without_privacy_the_sites_learn(run, study_file, tiny):
    tiny.write_study(
        study_file,
        training={"rounds": 6, "local_steps": 10},
        privacy={"mechanism": "none"},
        evaluation={"data": "public.csv"},
    )
    result, _ = run()
    assert result.rounds[-1].accuracy > 0.9
    assert result.rounds[-1].loss < 0.5
    assert {site.epsilon for site in result.sites} == {None}


def test_a_study_goes_on_from_what_was_learned_on_public_data(run, study_file, tiny, tmp_path):
    public = {
        "training": {"rounds": 3, "local_steps": 10},
        "privacy": {"mechanism": "none"},
        "evaluation": {"data": "public.csv"},
    }
    tiny.write_study(study_file, **public)
    learned, _ = run(sites=1)
    tiny.write_study(
        study_file,
        training={"rounds": 1, "local_steps": 1, "learning_rate": 1e-6},
        adapter={"start": str(Path(learned.adapter).relative_to(tmp_path))},
        evaluation={"data": "public.csv"},
    )
    started, _ = run()
    assert started.rounds[0].loss == pytest.approx(learned.rounds[-1].loss, abs=1e-3)
    assert started.rounds[0].loss < learned.rounds[0].loss


def test_the_study_stays_what_it_is_but_for_the_sites(run, study_file):
    _, view = run()
    asked = studies.load(study_file)
    assert view.study.training == asked.training
    assert view.study.privacy == asked.privacy
    assert {i.sector.value for i in view.study.institutions} == {
        "academia",
        "industry",
        "government",
    }


def test_a_quorum_that_so_few_sites_cannot_reach_is_lowered(run, study_file, tiny):
    tiny.write_study(
        study_file,
        training={"rounds": 1},
        federation={"quorum": 5},
        institutions=[
            {"name": f"I{n}", "sector": "academia", "records": 120} for n in range(5)
        ],
    )
    result, view = run(sites=2)
    assert (result.status, view.study.federation.quorum) == ("completed", 2)


# Which data, dealt out how


@pytest.mark.parametrize("name", ["study.csv", "data.csv", "train.csv"])
def test_data_beside_the_study_are_found(study_file, tmp_path, name):
    (tmp_path / "data.csv").rename(tmp_path / name)
    study = Study.model_validate({"study": {"name": "x"}, **_rest()})
    assert federations.find_data(study_file, study) == tmp_path / name


def _rest() -> dict:
    return {"task": {"labels": ["mild", "severe"]}, "model": {"base": "somewhere"}}


def test_the_data_set_that_the_study_names_comes_first(study_file, tmp_path):
    write_data(tmp_path / "notes.csv")
    study = Study.model_validate({"study": {"name": "x", "dataset": "notes"}, **_rest()})
    assert federations.find_data(study_file, study) == tmp_path / "notes.csv"


def test_no_data_beside_the_study_is_said(run, tmp_path):
    (tmp_path / "data.csv").unlink()
    with pytest.raises(DataError, match="no data beside") as raised:
        run()
    assert "--data" in raised.value.advice
    assert run(data=write_data(tmp_path / "elsewhere.csv"))[0].status == "completed"


def test_a_column_can_say_which_record_is_whose(run, tmp_path):
    names = ["Nord", "Süd", "Ost", "Nord"]
    write_data(tmp_path / "data.csv", records=200, sites=names)
    result, view = run(partition="column:site", sites=None)
    assert {i.name: i.records for i in view.study.institutions} == {
        "Nord": 100,
        "Ost": 50,
        "Süd": 50,
    }
    assert {site.name for site in result.sites} == set(names)


def test_every_record_is_at_one_site(tiny, study_file, tmp_path):
    study = tiny.study(training={"rounds": 1, "batch_size": 2})
    dealt = federations.deal(study, tmp_path / "data.csv", "dirichlet:0.5", 4, 3, tmp_path)
    positions = sorted(int(i) for shard in dealt.shards for i in shard.indices)
    assert positions == list(range(180))
    assert len(dealt.records) == 180


def test_each_site_has_its_own_records_and_no_others(tiny, study_file, tmp_path):
    study = tiny.study(training={"batch_size": 2})
    dealt = federations.deal(study, tmp_path / "data.csv", "quantity:1", 3, 0, tmp_path)
    dealt.prepare()
    workbench, contents = federations.seeded_workbench(0), set()
    for index, shard in enumerate(dealt.shards):
        site = dealt.site(index, workbench)
        dataset = site.dataset(dealt.study)
        assert dataset.records == len(shard.indices)
        contents.add(dataset.sha256)
        mine = site.records(dealt.study, dataset).training
        expected = dealt.records.select(shard.indices)
        np.testing.assert_array_equal(mine.ids, expected.ids)
        np.testing.assert_array_equal(mine.labels, expected.labels)
    assert len(contents) == 3  # or they would share a budget


@pytest.mark.parametrize("partition", ["iidd", "dirichlet:x", "column:nowhere"])
def test_a_partition_that_cannot_be_made_is_said(run, partition):
    with pytest.raises(UsageError):
        run(partition=partition, sites=None)


def test_sites_to_whom_the_promise_would_be_empty_are_refused(run, study_file, tiny):
    tiny.write_study(study_file, privacy={"target_delta": 0.12}, institutions=[])
    with pytest.raises(StudyError, match="one over the records of site-01"):
        run(sites=20)


@pytest.mark.parametrize("name", ["x" * 121, "a\u202eb"])
def test_a_name_that_no_institution_can_have_is_said(run, tmp_path, name):
    write_data(tmp_path / "data.csv", records=180, sites=[name, "B"])
    with pytest.raises(UsageError, match="cannot be an institution's name"):
        run(partition="column:site", sites=None)


def test_a_name_in_the_data_leads_nowhere_else(run, study_file, tiny, tmp_path):
    tiny.write_study(study_file, training={"rounds": 1})
    write_data(tmp_path / "data.csv", records=180, sites=["../../escaped", "..", "a/b"])
    result, _ = run(partition="column:site", sites=None)
    assert result.status == "completed"
    assert not (tmp_path / "escaped").exists()
    assert len(list((tmp_path / "run-0" / "sites").iterdir())) == 3


# Where it is kept


def test_a_folder_that_is_not_empty_is_left_alone(run, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        run(folder=folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


class _Meanwhile(Console):
    """Something else happens each time that a simulation says what it does."""

    def __init__(self, happens) -> None:
        super().__init__(file=StringIO())
        self._happens = happens

    def status(self, *args, **kwargs):
        self._happens()
        return super().status(*args, **kwargs)


def test_two_simulations_do_not_share_a_folder(run, study_file, tmp_path):
    folder, refused = tmp_path / "mine", []

    def another():
        with pytest.raises(UsageError, match="Another process simulates in"):
            run(folder=folder)
        refused.append(True)

    asked = Simulation(study_file, sites=SITES, folder=folder)
    first, _ = simulate(asked, _Meanwhile(another))
    assert first.status == "completed"
    assert refused
    with pytest.raises(UsageError, match="not empty"):
        run(folder=folder)


def test_a_folder_in_which_a_simulation_did_not_begin_will_do(run, tmp_path):
    with pytest.raises(UsageError, match="partition"):
        run(folder=tmp_path / "mine", partition="nonsense")
    assert run(folder=tmp_path / "mine")[0].status == "completed"


def test_an_empty_folder_will_do_and_the_adapter_is_in_it(run, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    result, _ = run(folder=folder)
    assert Path(result.adapter).is_relative_to(folder)


def test_a_model_that_is_not_there_is_said(run, study_file, tiny):
    tiny.write_study(study_file, model={"base": "/nowhere"})
    with pytest.raises(ModelError, match="no model folder"):
        run()


def test_the_result_is_printed_as_json_alone(study_file, tmp_path, capsys):
    asked = Simulation(study_file, sites=SITES, folder=tmp_path / "run")
    result = run_simulation(asked, as_json=True)
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(result.model_dump_json())


def test_or_as_tables_for_people(study_file, tmp_path, capsys):
    run_simulation(Simulation(study_file, sites=SITES, folder=tmp_path / "run"), as_json=False)
    printed = capsys.readouterr().out
    assert "site-03" in printed
    assert "adding or removing one record" in printed.replace("\n", " ")


@pytest.mark.parametrize(
    "choice",
    [
        {"method": "fedsvd"},
        {"method": "rolora"},
        {"method": "flexlora"},
        {"method": "rolora", "server_optimizer": "yogi", "server_learning_rate": 0.01},
        {"method": "fedsvd", "robust": "geometric-median"},
    ],
    ids=lambda choice: "-".join(map(str, choice.values())),
)
def test_every_way_to_aggregate_runs_among_real_sites(run, tiny, tmp_path, choice):
    robust = {"federation": {"quorum": SITES}, "institutions": []} if "robust" in choice else {}
    path = tiny.write_study(
        tmp_path / "study.toml", training={"rounds": 2}, aggregation=choice, **robust
    )
    result, view = run(study=path)
    assert (result.status, [r.sites for r in result.rounds]) == ("completed", [SITES] * 2)
    both = choice["method"] == "flexlora"
    assert all((r.averaging_loss > 0) == both for r in result.rounds)
    assert all(-1 <= r.mean_cosine <= 1 for r in result.rounds)
    adapter = load_file(Path(result.adapter) / "adapter_model.safetensors")
    assert all(np.isfinite(value).all() for value in adapter.values())
    for name, a in adapter.items():
        if ".lora_A." in name and choice["method"] in ("fedsvd", "flexlora"):
            np.testing.assert_allclose(a @ a.T, np.eye(len(a)), atol=1e-5)
    assert view.status == "completed"


@pytest.mark.parametrize("method", ["ffa-lora", "flora"])
def test_asking_what_updates_were_worth_changes_nothing_else(tiny, run, tmp_path, method):
    def simulated(**evaluation):
        path = tiny.write_study(
            tmp_path / "study.toml",
            training={"rounds": 3},
            aggregation={"method": method},
            evaluation={"data": "public.csv", **evaluation},
            institutions=[],
        )
        return run(study=path)

    write_data(tmp_path / "data.csv", records=180)
    write_data(tmp_path / "public.csv", records=60, seed=99)
    plain, _ = simulated()
    sparse, view = simulated(every=2, contributions="leave-one-out")
    assert digest(sparse) == digest(plain)
    assert sparse.rounds[0].loss is None
    assert sparse.rounds[0].contributions == {}
    for number in (1, 2):
        there, here = sparse.rounds[number], plain.rounds[number]
        assert (there.loss, there.metrics) == (here.loss, here.metrics)
        assert set(there.contributions) == {site.name for site in sparse.sites}
        assert any(one.loss for one in there.contributions.values())
        assert here.contributions == {}
    folder = Path(sparse.adapter).parent.parent
    asked = ["run", "report", "--simulation", str(folder), "--format", "json"]
    report = json.loads(CliRunner().invoke(app, asked).output)
    assert report["public"] == [None, *(r.accuracy for r in view.rounds[1:])]
    for site in report["sites"]:
        worth = [r.contributions.get(site["site"]) for r in view.rounds]
        assert site["loss_contributions"] == [one and one.loss for one in worth]


def person_file(tiny, folder: Path, **sections: dict) -> Path:
    write_persons(folder / "data.csv", records=180, persons=60)
    document = person_sections(**sections)
    return tiny.write_study(folder / "study.toml", **document)


def test_a_promise_to_persons_is_kept_by_sites_that_share_none(tiny, run, tmp_path):
    study_file = person_file(tiny, tmp_path, training={"rounds": 1})
    result, view = run(study=study_file, partition="dirichlet:0.5")
    assert (result.status, result.unit) == ("completed", "person (who)")
    assert sum(one.persons for one in view.study.institutions) == 60
    assert sum(one.records for one in view.study.institutions) == 180
    dealt = federations.deal(
        studies.load(study_file),
        tmp_path / "data.csv",
        "dirichlet:0.5",
        SITES,
        0,
        tmp_path / "f",
    )
    homes = [set(dealt.records.persons[shard.indices]) for shard in dealt.shards]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 60
    assert sorted(i for shard in dealt.shards for i in shard.indices) == list(range(180))


def test_a_column_that_parts_a_person_is_refused(tiny, run, tmp_path):
    study_file = person_file(tiny, tmp_path, training={"rounds": 1})
    with pytest.raises(UsageError, match="one person at several sites"):
        run(study=study_file, partition="column:text", sites=None)


def test_the_coordinators_own_noise_follows_the_seed_and_is_stated_apart(tiny, run, tmp_path):
    write_data(tmp_path / "data.csv", records=90)
    study_file = tiny.write_study(
        tmp_path / "study.toml",
        training={"rounds": 1},
        privacy={"mechanism": "none"},
        aggregation={"clip_norm": 0.1, "noise_multiplier": 2.0},
    )
    one, again = (run(study=study_file)[0] for _ in range(2))
    assert digest(one) == digest(again)
    assert digest(one) != digest(run(study=study_file, seed=1)[0])
    assert one.central.epsilon > 0
    assert [site.epsilon for site in one.sites] == [None] * SITES
