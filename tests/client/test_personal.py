"""What is a site's own: it is trained, kept and never sent; through `Site.answer` alone."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner

from fedpact.client.cli import client_app
from fedpact.client.datasets import Datasets
from fedpact.client.gate import Gate
from fedpact.client.home import ClientHome
from fedpact.client.personal import Kept, RunFolder, whole
from fedpact.client.site import Site, plan
from fedpact.client.up import build_site
from fedpact.client.workbench import Workbench
from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.errors import DataError, RunError, StorageError, StudyError, UsageError
from fedpact.common.study import Study
from support.site_factory import INSTITUTION, update_request
from support.tiny_bert import TinyBert, write_data

RUN = "r1"
PRIVATE_HEAD = {"personalisation": {"method": "private-head"}}
FEDSA = {"personalisation": {"method": "fedsa-lora"}, "aggregation": {"method": "fedavg"}}
FINE_TUNE = {"personalisation": {"method": "fine-tune", "steps": 2}}
INTERPOLATE = {"personalisation": {"method": "interpolate", "steps": 2}}
DITTO = {"personalisation": {"method": "ditto", "ditto_lambda": 0.5}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "notes.csv")


@dataclass
class House:
    """A site on a folder, whose every round follows a seed."""

    home: ClientHome
    study: Study

    def site(self, seed: int = 0) -> Site:
        workbench = Workbench(rng=np.random.default_rng(seed))
        site = build_site(self.home, INSTITUTION, workbench)
        return replace(site, agreed=lambda _: None)

    def ask(self, weights: Weights, number: int = 1, site: Site | None = None):
        """The packet with which a site answers, and what is in it."""
        packet = (site or self.site()).answer(
            update_request(self.study, weights, run=RUN, round=number)
        )
        header, change = wire.unpack(packet)
        assert isinstance(header, wire.UpdateHeader), header
        return packet, change

    def kept(self, before: int) -> Kept:
        return RunFolder(self.home.runs).before(RUN, before)


@pytest.fixture
def house(tmp_path, tiny: TinyBert, data):
    """Make a house for a study with these sections."""
    numbers = iter(range(10))

    def made(**sections) -> House:
        home = ClientHome(tmp_path / f"home-{next(numbers)}")
        Datasets(home.open_database()).add("notes", data)
        rules = "allow_model_folders = true\nallow_insecure_seed = true\n"
        home.policy.write_text(rules, encoding="utf-8")
        return House(home, tiny.study(**sections))

    return made


def first(study: Study) -> Weights:
    return Workbench().model(study).first


def shared(study: Study, seed: int = 3) -> Weights:
    """Some adapter as the coordinator would send it."""
    every = first(study)
    values = np.random.default_rng(seed).normal(0, 0.2, every.manifest.size).astype(np.float32)
    weights = Weights(every.manifest, values)
    return weights.select(study.shared(every.manifest.names))


def is_own(study: Study, name: str) -> bool:
    return (
        ".lora_" not in name if study.aggregation.method != "fedavg" else ".lora_A." not in name
    )


@pytest.mark.parametrize("sections", [PRIVATE_HEAD, FEDSA])
def test_what_a_site_keeps_is_trained_by_the_same_private_steps_and_never_sent(house, sections):
    place = house(**sections)
    sent = shared(place.study)
    packet, change = place.ask(sent)

    start = whole(place.study, first(place.study), sent, None)
    bench = place.site().workbench
    bench.fit(place.study, INSTITUTION, sent, 1)
    mechanism = plan(place.study, INSTITUTION)
    bench.self_test(place.study, INSTITUTION, RUN, 1, mechanism)
    site = place.site()
    records = site.records(place.study, site.dataset(place.study)).training
    trained = bench.train(place.study, INSTITUTION, start, records, mechanism)

    own = [n for n in trained.change.manifest.names if is_own(place.study, n)]
    assert own
    assert set(change.manifest.names) == set(trained.change.manifest.names) - set(own)
    np.testing.assert_array_equal(
        change.flat, trained.change.select(change.manifest.names).flat
    )
    kept = place.kept(2)
    assert kept.personal.manifest.names == tuple(own)
    np.testing.assert_array_equal(
        kept.personal.flat, start.plus(trained.change).select(own).flat
    )
    assert kept.shared.digest == sent.digest
    for name, value in kept.personal.tensors().items():
        assert name not in packet.header
        assert value.tobytes() not in packet.array
        assert trained.change.tensors()[name].tobytes() not in packet.array


@pytest.mark.parametrize("sections", [PRIVATE_HEAD, FEDSA, DITTO])
def test_a_later_round_starts_from_what_the_one_before_left(house, sections):
    place = house(**sections)
    sent = shared(place.study)
    place.ask(sent, 1)
    kept = place.kept(2)
    far = Weights(kept.personal.manifest, kept.personal.flat + 1)
    folder = RunFolder(place.home.runs)
    folder.keep(RUN, place.study, replace(kept, personal=far))
    place.ask(sent, 2)
    moved = place.kept(3).personal.flat - far.flat
    assert 0 < np.abs(moved).max() < 0.2
    assert folder.newest(RUN)[0] == place.study


class _FullDisk(Gate):
    """A gate that cannot write what is about to leave."""

    def release(self, *_args, **_more):
        raise StorageError("The disk is full.")


@pytest.mark.parametrize("sections", [PRIVATE_HEAD, DITTO])
def test_a_round_trained_again_after_a_crash_starts_where_it_started(house, sections):
    place = house(**sections)
    sent = shared(place.study)
    place.ask(sent, 1)
    broken = replace(
        place.site(5), gate=_FullDisk(place.home.open_database(), place.home.outbox)
    )
    with pytest.raises(StorageError):
        place.ask(sent, 2, broken)
    of_the_crash = place.kept(3)
    again, _ = place.ask(sent, 2, place.site(5))
    assert place.kept(3).personal.digest == of_the_crash.personal.digest
    # Nor does a request that comes twice train what is personal twice.
    same, _ = place.ask(sent, 2, place.site(6))
    assert same == again
    assert place.kept(3).personal.digest == of_the_crash.personal.digest


def test_nothing_shared_depends_on_a_second_adapter(house):
    """It is trained without noise: the update is the same, to the bit, whatever it is."""
    with_it, without = house(**DITTO), house()
    sent = shared(without.study)
    changes = [place.ask(sent, 1)[1] for place in (with_it, without)]
    assert changes[0].digest == changes[1].digest
    kept = with_it.kept(2)
    moved = replace(kept, personal=Weights(kept.personal.manifest, 2 * kept.personal.flat))
    RunFolder(with_it.home.runs).keep(RUN, with_it.study, moved)
    changes = [place.ask(sent, 2, place.site(9))[1] for place in (with_it, without)]
    assert changes[0].digest == changes[1].digest
    assert without.kept(3).personal is None


def test_a_second_adapter_is_pulled_towards_the_shared_one(house):
    def distance(strength: float) -> float:
        place = house(
            personalisation={"method": "ditto", "ditto_lambda": strength},
            training={"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 20},
        )
        sent = shared(place.study)
        place.ask(sent)
        personal = place.kept(2).personal
        return float(np.linalg.norm(personal.flat - sent.flat))

    loose, tight = distance(0.01), distance(8.0)
    assert 0 < tight < loose / 3


@pytest.mark.parametrize("sections", [DITTO, FINE_TUNE])
def test_a_second_adapter_may_be_trained_at_a_rate_of_its_own(run, tmp_path, sections):
    def moved(folder: str, **own: object) -> float:
        changed = {"personalisation": {**sections["personalisation"], **own}}
        place, _ = run(changed, "personal", "export", RUN, str(tmp_path / folder))
        found = Weights.load(tmp_path / folder / "adapter_model.safetensors")
        return float(np.linalg.norm(found.flat - place.kept(2).shared.flat))

    assert moved("slow", optimizer="sgd", learning_rate=1e-6) < 0.01 * moved("usual")


def test_each_round_pulls_a_second_adapter_towards_what_was_received_for_it(house):
    """Not to what an earlier round had, and not to where the second adapter itself starts."""
    place = house(
        aggregation={"method": "fedavg"},  # which trains, and so pulls, all tensors
        personalisation={"method": "ditto", "ditto_lambda": 8.0},
        training={"optimizer": "sgd", "learning_rate": 0.1, "local_steps": 20},
    )
    sent = [shared(place.study, seed) for seed in (3, 4)]
    apart = np.linalg.norm(sent[0].flat - sent[1].flat)
    for number, anchor in enumerate(sent, start=1):
        place.ask(anchor, number)
        personal = place.kept(number + 1).personal
        assert 0 < np.linalg.norm(personal.flat - anchor.flat) < apart / 10


def test_a_second_adapter_that_cannot_be_trained_is_not_told_to_anyone(house, caplog):
    place = house(personalisation={"method": "ditto", "ditto_lambda": 1e300})
    place.ask(shared(place.study))
    assert place.kept(2).personal is None
    assert "personal adapter stays" in caplog.text


def test_a_site_stands_its_self_test_with_a_proximal_term(house):
    """Whose pull would draw back the noise of one step in the next."""
    place = house(training={"proximal_mu": 20.0, "local_steps": 4, "optimizer": "sgd"})
    _, change = place.ask(shared(place.study))
    _, free = house(training={"local_steps": 4, "optimizer": "sgd"}).ask(shared(place.study))
    assert 0 < change.norm < free.norm


def test_a_run_folder_keeps_the_round_before_the_newest(tmp_path, tiny):
    folder, study = RunFolder(tmp_path), tiny.study()
    for number in (2, 3, 10, 11):
        some = Weights.from_tensors({"x": np.full(2, number)})
        folder.keep(RUN, study, Kept(number, some, None))
    assert sorted(path.stem for path in (tmp_path / f"run-{RUN}").glob("*.safetensors")) == [
        "10",
        "11",
    ]
    assert [folder.before(RUN, n).number for n in (11, 12)] == [10, 11]
    assert folder.before(RUN, 10) is None
    assert folder.before("another", 5) is None
    with pytest.raises(RunError, match="no round"):
        folder.newest("another")
    (tmp_path / f"run-{RUN}" / "11.safetensors").write_bytes(b"torn")
    with pytest.raises(StorageError, match="damaged"):
        folder.newest(RUN)


@pytest.mark.parametrize("name", ["..", ".", "..."])
def test_what_a_run_is_called_leads_nowhere_else(tmp_path, tiny, name):
    runs, some = tmp_path / "home" / "runs", Weights.from_tensors({"x": np.ones(2)})
    RunFolder(runs).keep(name, tiny.study(), Kept(1, some, None))
    assert RunFolder(runs).before(name, 2).shared.digest == some.digest
    assert {path.parent.parent for path in tmp_path.rglob("*.*") if path.is_file()} == {runs}


# What cannot work is refused before anyone signs it


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"personalisation": {"method": "fedsa-lora"}}, "needs `aggregation.method` fedavg"),
        ({"personalisation": {"method": "ditto"}}, "`ditto_lambda` is for"),
        ({"personalisation": {"ditto_lambda": 1.0}}, "`ditto_lambda` is for"),
        ({"personalisation": {"method": "fine-tune"}}, "`steps` is for"),
        ({"personalisation": {"method": "interpolate"}}, "`steps` is for"),
        ({**INTERPOLATE, "aggregation": {"method": "fedavg"}}, "fedavg trains it"),
        ({"personalisation": {"method": "private-head", "share_head": True}}, "`share_head`"),
        ({"personalisation": {"method": "private-head", "optimizer": "sgd"}}, "`optimizer`"),
        ({"personalisation": {"learning_rate": 0.1}}, "`learning_rate`"),
        ({**PRIVATE_HEAD, "adapter": {"modules_to_save": []}}, "needs a head"),
        ({**DITTO, "aggregation": {"method": "fedsvd"}}, "another basis"),
        (
            {
                "personalisation": {"method": "ditto", "ditto_lambda": 60.0},
                "training": {"optimizer": "sgd"},
            },
            "further back than it came",
        ),
        (
            {
                "personalisation": {
                    "method": "ditto",
                    "ditto_lambda": 2.0,
                    "optimizer": "sgd",
                    "learning_rate": 0.6,
                },
            },
            "further back than it came",
        ),
        ({"training": {"proximal_mu": 0.1, "local_steps": 1}}, "nothing has moved"),
        ({"training": {"proximal_mu": 60.0, "optimizer": "sgd"}}, "further back than it came"),
    ],
)
def test_a_study_that_cannot_work_is_refused(tiny, sections, why):
    with pytest.raises(ValueError, match=why):
        tiny.study(**sections)


def test_a_head_may_be_shared_beside_a(tiny):
    names = first(tiny.study(**FEDSA)).manifest.names
    sections = {**FEDSA, "personalisation": {"method": "fedsa-lora", "share_head": True}}
    kinds = {".lora_A." in n or ".lora_" not in n for n in tiny.study(**sections).shared(names)}
    assert kinds == {True}


# What an institution sees and takes with it


@pytest.fixture
def run(house, tmp_path, monkeypatch):
    """Take part in a round of a study with these sections, then type a command."""

    def typed(sections: dict, *words: str):
        place = house(**sections)
        place.ask(shared(place.study))
        settings = {
            "institution": INSTITUTION,
            "sector": "academia",
            "role": "data-holder",
            "coordinator": "host:9443",
            "service": "host:9444",
            "coordinator_key": "0" * 64,
            "node_id": "1",
            "ca_fingerprint": "0" * 64,
            "joined_at": "2026-01-01T00:00:00Z",
        }
        place.home.site.write_text(tomli_w.dumps(settings), encoding="utf-8")
        monkeypatch.setenv("COLUMNS", "200")
        done = CliRunner().invoke(client_app, [*words, "--home", str(place.home.folder)])
        if done.exception:
            raise done.exception
        return place, done.output

    return typed


@pytest.mark.parametrize("sections", [PRIVATE_HEAD, FEDSA, DITTO, FINE_TUNE, INTERPOLATE])
def test_a_personal_adapter_is_exported_whole(run, tmp_path, sections):
    place, said = run(sections, "personal", "export", RUN, str(tmp_path / "mine"))
    every = first(place.study)
    found = Weights.load(tmp_path / "mine" / "adapter_model.safetensors")
    assert found.manifest == every.manifest
    kept = place.kept(2)
    match place.study.personalisation.method:
        case "ditto":
            assert found.digest == kept.personal.digest
        case "fine-tune":
            assert 0 < np.linalg.norm(found.flat - kept.shared.flat) < 1
        case "interpolate":
            trained = [name for name in every.manifest.names if ".lora_A." not in name]
            zero = kept.shared.overlaid(every.select(trained))
            share = share_of_shared(said)
            between = share * kept.shared.flat + (1 - share) * zero.flat
            assert 0 < np.linalg.norm(found.flat - between) < 1
            # A is not trained, and the shared one is another than the seed's.
            a = [name for name in every.manifest.names if ".lora_A." in name]
            assert found.select(a).digest == kept.shared.select(a).digest
        case _:
            assert found.digest == every.overlaid(kept.shared).overlaid(kept.personal).digest
    noised = sections in (PRIVATE_HEAD, FEDSA)
    assert ("WITHOUT NOISE" in said) != noised


def share_of_shared(said: str) -> float:
    """What an export says of the adapter."""
    (found,) = re.findall(r"began with the shared adapter: ([0-9.]+)\.\n", said)
    return float(found)


def test_a_site_chooses_how_what_stays_there_is_trained(run, tmp_path):
    test = write_data(tmp_path / "test.csv", 30, seed=7)
    asked = ("report", RUN, "--test", str(test), "--format", "json")
    place, said = run(FINE_TUNE, *asked, "--method", "interpolate")
    found = json.loads(said)
    assert found["personalisation"] == "interpolate"
    assert found["study_digest"] == place.study.digest  # the run's, whatever is done after it
    assert found["sites"][0]["share_of_shared"] in (0, 0.5, 1)

    _, said = run(
        FINE_TUNE, "personal", "export", RUN, str(tmp_path / "mine"), "--method", "interpolate"
    )
    assert share_of_shared(said) in (0, 0.5, 1)
    _, said = run(INTERPOLATE, *asked, "--method", "fine-tune")
    assert json.loads(said)["sites"][0]["share_of_shared"] is None

    with pytest.raises(StudyError, match="no personal adapter after the run"):
        run(DITTO, *asked, "--method", "interpolate")
    unfit = {**FINE_TUNE, "aggregation": {"method": "fedavg"}}
    with pytest.raises(StudyError, match="fedavg trains it"):
        run(unfit, *asked, "--method", "interpolate")


def test_there_is_nothing_to_export_where_nothing_is_personal(run, tmp_path):
    with pytest.raises(RunError, match="no personal adapter"):
        run({}, "personal", "export", RUN, str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        run(DITTO, "personal", "export", RUN, str(tmp_path / "mine"))


def test_a_site_compares_what_it_got_with_training_alone_and_nothing_leaves(run, tmp_path):
    test = write_data(tmp_path / "test.csv", 30, seed=7)
    place, said = run(DITTO, "report", RUN, "--test", str(test), "--dp", "--format", "json")
    found = json.loads(said)
    assert (found["study_digest"], found["alone"]) == (place.study.digest, "with DP")
    (site,) = found["sites"]
    assert (site["site"], site["own"]["records"], site["public"]) == (INSTITUTION, 30, None)
    assert site["own"]["shared"] is not None
    assert site["own"]["personal"] is not None
    assert len(place.site().ledger.history("notes")) == 1  # the round's own
    assert len(list(place.home.outbox.iterdir())) == 1


def test_alone_begins_with_the_adapter_that_the_study_names(run, tiny, tmp_path):
    every = first(tiny.study())
    (tmp_path / "start").mkdir()
    head = next(name for name in every.manifest.names if name.endswith("classifier.bias"))
    sure = every.overlaid(Weights.from_tensors({head: np.array([9.0, -9.0], np.float32)}))
    sure.save(tmp_path / "start" / "adapter_model.safetensors")
    test = write_data(tmp_path / "test.csv", 30, seed=7)
    words = ("report", RUN, "--test", str(test), "--format", "json")
    beginning = {"adapter": {"start": "start"}}

    def alone(*more: str) -> float:
        _, said = run(beginning, *words, *more)
        return json.loads(said)["sites"][0]["own"]["alone"]["loss"]

    assert alone() < 1 < alone("--start", str(tmp_path / "start"))
    with pytest.raises(UsageError, match="begins with no adapter"):
        run({}, *words, "--start", str(tmp_path / "start"))
    beginning["adapter"]["start_sha256"] = "ab" * 32
    with pytest.raises(DataError, match="not the SHA-256"):
        alone("--start", str(tmp_path / "start"))
    _, said = run(beginning, *words[:-2])
    assert "Alone began at zero" in said


def test_records_that_are_set_aside_are_compared_on(run):
    sections = {**FINE_TUNE, "evaluation": {"site_metrics": "private"}}
    _, said = run(sections, "report", RUN)
    assert "own test records" in said
    with pytest.raises(UsageError, match="nothing to measure on"):
        run(FINE_TUNE, "report", RUN)
