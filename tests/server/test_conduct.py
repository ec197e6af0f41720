"""A whole run, put together: its public test set, its status, its adapter."""

import numpy as np
import peft
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification

from fedpact.common import base_models, tasks
from fedpact.common import model as models
from fedpact.common.adapter import ADAPTER, Weights
from fedpact.common.database import open_database
from fedpact.common.errors import DataError, ModelError, RunError, StorageError
from fedpact.common.evaluation import evaluate
from fedpact.server import runs
from fedpact.server.conduct import conduct, measure_of, public_test_set
from fedpact.server.home import MIGRATIONS
from fedpact.server.round_needs import Terms
from support import liar
from support.round_fakes import FakeExchange
from support.site_factory import INSTITUTION
from support.tiny_bert import write_data

CPU = torch.device("cpu")


def agreed() -> Terms:
    return Terms({INSTITUTION})


def drawn(packet):
    """A site whose changes are drawn by the round: enough to change what the model says."""
    asked = liar.Asked.of(packet)
    rng = np.random.default_rng(asked.header.round)
    values = rng.normal(0, 0.5, asked.trained.size).astype(np.float32)
    return asked.update(Weights(asked.trained, values))


@pytest.fixture
def engine(tmp_path):
    opened = open_database(f"sqlite:///{tmp_path / 'fedpact.db'}", MIGRATIONS)
    yield opened
    opened.dispose()


@pytest.fixture
def study(tiny, tmp_path):
    test_set = write_data(tmp_path / "public.csv", records=90, seed=7)
    evaluation = {"data": test_set.name, "sha256": base_models.file_digest(test_set)}
    return tiny.study(evaluation=evaluation)


def no_site(_packet):
    raise AssertionError("no site is to be asked")


def run_of(engine, study, tmp_path, site=drawn, **how):
    """Conduct a run with one site; its id, and the adapter's folder."""
    run = runs.create(engine, study, tmp_path)
    exchange = FakeExchange({INSTITUTION: site})
    return run, conduct(
        engine, run, exchange, tmp_path / "artifacts", **{"terms": agreed, **how}
    )


# The public test set


def test_there_need_be_no_public_test_set(tiny, tmp_path):
    study = tiny.study()
    assert public_test_set(study, tmp_path) is None
    assert measure_of(study, tmp_path, models.build(study, CPU)) is None


def test_the_public_test_set_is_looked_for_beside_the_study(study, tmp_path):
    assert len(public_test_set(study, tmp_path)) == 90
    with pytest.raises(DataError, match=r"no file .*elsewhere/public\.csv"):
        public_test_set(study, tmp_path / "elsewhere")


def test_another_public_test_set_is_refused(study, tmp_path):
    write_data(tmp_path / "public.csv", records=90, seed=8)
    with pytest.raises(DataError, match="has not the SHA-256"):
        public_test_set(study, tmp_path)


def test_without_a_sha256_any_file_of_that_name_will_do(tiny, tmp_path):
    write_data(tmp_path / "public.csv", records=30)
    study = tiny.study(evaluation={"data": "public.csv"})
    assert len(public_test_set(study, tmp_path)) == 30


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("text,label\na day,mild\na day,unknown\n", r"does not know: 'unknown' \(1\)"),
        ("text,lable\na day,mild\n", "no column 'label'; did you mean 'lable'"),
        ("text,label\n", "no records"),
    ],
)
def test_a_public_test_set_that_does_not_fit_is_refused(tiny, tmp_path, content, sentence):
    (tmp_path / "public.csv").write_text(content)
    with pytest.raises(DataError, match=sentence):
        public_test_set(tiny.study(evaluation={"data": "public.csv"}), tmp_path)


def test_measuring_measures_the_adapter_given(study, tmp_path):
    model = models.build(study, CPU)
    measure = measure_of(study, tmp_path, model)
    zero = models.get_adapter(model)
    assert measure(zero).loss == pytest.approx(np.log(2))  # a head at zero guesses evenly
    rng = np.random.default_rng(0)
    other = Weights(zero.manifest, rng.normal(0, 1, zero.manifest.size).astype(np.float32))
    assert measure(other) != measure(zero)
    assert measure(zero).loss == pytest.approx(np.log(2))


def test_the_tokeniser_is_loaded_once(study, tmp_path, monkeypatch):
    model, load, loaded = models.build(study, CPU), base_models.load_tokenizer, []

    def counted(of):
        loaded.append(of)
        return load(of)

    monkeypatch.setattr(base_models, "load_tokenizer", counted)
    measure_of(study, tmp_path, model)
    assert loaded == [study]


# The run


def test_peft_loads_the_adapter_and_it_is_as_good_as_the_run_said(engine, study, tmp_path):
    run, folder = run_of(engine, study, tmp_path)
    view = runs.view(engine, run)
    assert (view.status, view.message, view.adapter) == ("completed", "", str(folder))
    assert [r.accuracy is not None for r in view.rounds] == [True] * 3
    assert len({r.loss for r in view.rounds}) == 3, "the rounds did not change the model"
    base = AutoModelForSequenceClassification.from_pretrained(study.model.base, num_labels=2)
    loaded = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    metrics = evaluate(
        loaded,
        public_test_set(study, tmp_path),
        tasks.for_study(study),
        pad_id=base_models.load_tokenizer(study).pad_token_id,
        device=CPU,
    )
    assert metrics.score == view.rounds[-1].accuracy
    assert metrics.loss == pytest.approx(view.rounds[-1].loss, abs=1e-6)


def test_the_run_begins_with_the_studys_seed_and_adds_what_sites_changed(
    engine, tiny, tmp_path
):
    study = tiny.study(training={"rounds": 1, "seed": 5})
    _, folder = run_of(engine, study, tmp_path, site=liar.honest(0.25))
    first = models.initial_weights(models.build(study, CPU), 5).tensors()
    after = load_file(folder / "adapter_model.safetensors")
    assert after.keys() == first.keys()
    for name, tensor in after.items():
        change = 0.0 if ".lora_A." in name else 0.25
        np.testing.assert_allclose(tensor, first[name] + change, atol=1e-7)


def test_a_model_that_the_caller_has_is_used(engine, study, tmp_path, monkeypatch):
    model = models.build(study, CPU)
    monkeypatch.setattr(models, "build", lambda *_: pytest.fail("built again"))
    run, _ = run_of(engine, study, tmp_path, model=model)
    assert runs.view(engine, run).status == "completed"


def test_every_adapter_and_every_update_is_kept(engine, study, tmp_path):
    run, _ = run_of(engine, study, tmp_path)
    kept = list((tmp_path / "artifacts").glob("*.safetensors"))
    updates = {a.digest for r in runs.view(engine, run).rounds for a in r.answers.values()}
    assert (
        len(kept) == len(updates) + 1 + 3
    )  # the adapter before the first round and after each
    assert updates <= {path.stem for path in kept}
    assert {path.stem for path in kept} == {Weights.load(path).digest for path in kept}


def test_a_run_that_is_asked_to_stop_keeps_its_adapter(engine, study, tmp_path):
    def site(packet):
        if liar.Asked.of(packet).header.round == 2:
            runs.request_stop(engine, runs.list_runs(engine)[0].id)
        return drawn(packet)

    run, folder = run_of(engine, study, tmp_path, site)
    view = runs.view(engine, run)
    assert (view.status, len(view.rounds)) == ("stopped", 2)
    assert (folder / "adapter_model.safetensors").exists()


def test_a_run_that_is_asked_to_stop_while_it_waits_for_sites_is_stopped(
    engine, study, tmp_path
):
    class Nobody(FakeExchange):
        def present(self):
            runs.request_stop(engine, run)
            return super().present()

    run = runs.create(engine, study, tmp_path)
    exchange = Nobody({})
    folder = conduct(engine, run, exchange, tmp_path / "artifacts", agreed)
    view = runs.view(engine, run)
    assert (view.status, view.message, view.rounds) == ("stopped", "", ())
    assert exchange.asked == []
    assert (folder / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"model": {"sha256": "0" * 64}}, ModelError, "SHA-256"),
        ({"evaluation": {"data": "nowhere.csv"}}, DataError, "no file"),
        ({"adapter": {"target_modules": ["nothing"]}}, ModelError, "does not fit"),
    ],
)
def test_a_run_that_cannot_begin_says_why(engine, tiny, tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        run_of(engine, tiny.study(**changes), tmp_path)
    (view,) = runs.list_runs(engine)
    assert (view.status, view.rounds, view.adapter) == ("failed", (), "")
    assert view.message == str(raised.value)


def test_a_run_begins_with_the_adapter_that_the_study_names(engine, study, tiny, tmp_path):
    _, before = run_of(engine, study, tmp_path)
    sha256 = base_models.file_digest(before / ADAPTER)
    start = {"start": str(before.relative_to(tmp_path)), "start_sha256": sha256}
    seen = []

    def site(packet):
        seen.append(liar.Asked.of(packet).adapter)
        return drawn(packet)

    run_of(engine, tiny.study(adapter=start, training={"rounds": 1}), tmp_path, site)
    assert_array_equal(seen[0].flat, Weights.load(before / ADAPTER).flat)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"start": "nowhere"}, "no adapter in"),
        ({"start_sha256": "0" * 64}, "not the SHA-256"),
        ({"r": 1}, "does not fit"),
        ({"target_modules": ["key"]}, "does not fit"),
    ],
)
def test_a_start_that_is_not_the_studys_begins_nothing(
    engine, study, tiny, tmp_path, change, sentence
):
    _, before = run_of(engine, study, tmp_path)
    other = tiny.study(adapter={"start": str(before), **change})
    with pytest.raises(DataError, match=sentence):
        run_of(engine, other, tmp_path, no_site)


def test_a_run_that_fails_on_the_way_says_why(engine, study, tmp_path):
    with pytest.raises(RunError, match="Round 1 has 0 updates"):
        run_of(engine, study, tmp_path, site=liar.not_a_number)
    (view,) = runs.list_runs(engine)
    assert (view.status, len(view.rounds)) == ("failed", 1)
    assert "Round 1 has 0 updates" in view.message


def test_whatever_goes_wrong_is_written_down(engine, study, tmp_path):
    def site(_packet):
        raise RuntimeError("torch")

    with pytest.raises(RuntimeError):
        run_of(engine, study, tmp_path, site)
    (view,) = runs.list_runs(engine)
    assert (view.status, view.message) == ("failed", "RuntimeError('torch')")


def test_a_process_that_is_told_to_end_leaves_its_run_to_be_called_interrupted(
    engine, study, tmp_path
):
    def site(_packet):
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        run_of(engine, study, tmp_path, site)
    (view,) = runs.interrupt(engine)
    assert view.status == "interrupted"


def test_a_run_that_has_ended_is_not_conducted_again(engine, study, tmp_path):
    run = runs.create(engine, study, tmp_path)
    runs.interrupt(engine)
    exchange = FakeExchange({INSTITUTION: drawn})
    with pytest.raises(RunError, match="has ended already"):
        conduct(engine, run, exchange, tmp_path / "artifacts", agreed)
    assert exchange.asked == []
    assert runs.view(engine, run).status == "interrupted"


@pytest.mark.parametrize("place", ["artifacts", "adapter"])
def test_a_disk_that_cannot_be_written_is_said(engine, study, tmp_path, place):
    run = runs.create(engine, study, tmp_path)
    artifacts = tmp_path / "artifacts"
    if place == "artifacts":
        artifacts.touch()
    else:
        artifacts.mkdir()
        (artifacts / run).touch()
    with pytest.raises(StorageError):
        conduct(engine, run, FakeExchange({INSTITUTION: drawn}), artifacts, agreed)
    view = runs.view(engine, run)
    assert view.status == "failed"
    assert "cannot be written" in view.message


def test_a_run_whose_agreement_ends_is_stopped_and_says_why(engine, study, tmp_path):
    allowed = [agreed(), Terms(set(), "The clinic withdrew.")]

    def terms():
        return allowed.pop(0) if len(allowed) > 1 else allowed[0]

    run, adapter = run_of(engine, study, tmp_path, terms=terms)
    view = runs.view(engine, run)
    assert (view.status, view.message) == ("stopped", "The clinic withdrew.")
    assert len(view.rounds) == 1
    assert (adapter / "adapter_model.safetensors").exists()
