"""Where the unit is a person: sampling, clipping and accounting are by person, whole."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpact.client import dpsgd, selftest, trainer
from fedpact.client.agreements import Agreements
from fedpact.client.batching import micro_batches, person_batches
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.record_cache import encode
from fedpact.client.trainer import LocalTraining
from fedpact.client.up import build_site
from fedpact.client.validation import split
from fedpact.client.workbench import Workbench
from fedpact.common import identity, wire
from fedpact.common import model as models
from fedpact.common.errors import DataError, TrainingError
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.planned import plan, plan_metrics
from fedpact.common.records import EncodedRecords, person_numbers
from support.persons import PERSONS, person_study, write_persons
from support.site_factory import INSTITUTION, update_request

KEY = identity.new_signing_key()

owners_of_records = st.lists(st.integers(0, 8), min_size=1, max_size=60).map(
    lambda owners: np.unique(owners, return_inverse=True)[1]
)


@pytest.fixture(scope="module")
def workbench():
    return Workbench()


@settings(deadline=None)
@given(
    owners=owners_of_records, most=st.integers(1, 9), q=st.floats(0.05, 1), seed=st.integers(0)
)
def test_a_person_is_in_a_batch_with_as_many_records_as_agreed(owners, most, q, seed):
    for batch in islice(person_batches(owners, q, most, np.random.default_rng(seed)), 5):
        assert len(set(batch)) == len(batch)
        drawn, counts = np.unique(owners[batch], return_counts=True)
        held = np.bincount(owners)[drawn]
        assert (counts == np.minimum(held, most)).all()


def test_persons_are_drawn_at_the_rate_and_their_records_evenly():
    owners, draws = np.repeat(np.arange(200), 5), 400
    seen = np.zeros(len(owners))
    for batch in islice(person_batches(owners, 0.1, 2, np.random.default_rng(0)), draws):
        seen[batch] += 1
    each = seen.reshape(200, 5)
    assert abs(each.sum() / (2 * 200 * draws * 0.1) - 1) < 0.05
    expected = 200 * draws * 0.1 * 2 / 5
    assert (abs(each.sum(axis=0) - expected) < 5 * expected**0.5).all()


@settings(deadline=None)
@given(owners=owners_of_records, tokens=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_persons_records_are_in_one_micro_batch(owners, tokens, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, len(owners))
    batch = np.flatnonzero(rng.random(len(owners)) < 0.7)
    pieces = micro_batches(batch, lengths, tokens, persons=owners)
    assert sorted(np.concatenate([*pieces, np.array([], dtype=int)])) == sorted(batch)
    homes = [set(owners[piece]) for piece in pieces]
    assert sum(map(len, homes)) == len(set(owners[batch]))
    for piece, persons in zip(pieces, homes, strict=True):
        assert len(persons) == 1 or len(piece) * lengths[piece].max() <= tokens


def whole_step(most, **fields):
    """One step without noise that sees everyone."""
    how = LocalTraining(
        steps=1,
        batch_size=10,
        learning_rate=10.0,  # so that the change is the clipped sum
        optimizer="sgd",
        max_grad_norm=0.05,
        mechanism=SubsampledGaussian(1e-9, 1.0, 1),
        max_records_per_person=most,
    )
    return replace(how, **fields)


def crowd_and_one(with_the_one):
    """Six persons with a record each and, if asked, one person with fifty that all say the same."""
    rng = np.random.default_rng(0)
    crowd = [rng.integers(5, 20, 8).tolist() for _ in range(6)]
    ids = crowd + [[2, 7, 7, 7, 3]] * 50 * with_the_one
    labels = [0, 1] * 3 + [1] * 50 * with_the_one
    owners = [f"c{i}" for i in range(6)] + ["one"] * 50 * with_the_one
    return EncodedRecords.from_lists(ids, labels, person_numbers(owners))


def influence(workbench, study, how):
    """By how much the person with fifty records moves the sum."""
    model = workbench.model(study)
    rng = np.random.default_rng(0)
    manifest = models.get_adapter(model.module).manifest
    received = models.Weights(manifest, rng.normal(0, 0.2, manifest.size).astype(np.float32))
    there, gone = (
        model.trainer.train(received, crowd_and_one(one), how).change.flat for one in (1, 0)
    )
    return float(np.linalg.norm(there.astype(np.float64) - gone))


@pytest.mark.parametrize("most", [1, 4, 50])
@pytest.mark.parametrize("max_tokens", [1, 4096])
def test_a_person_with_fifty_records_moves_the_sum_by_the_clipping_norm_at_most(
    tiny, workbench, most, max_tokens
):
    moved = influence(workbench, person_study(tiny), whole_step(most, max_tokens=max_tokens))
    assert 0.5 * 0.05 < moved <= 0.05 * (1 + 1e-3)


def test_as_single_records_they_would_move_it_much_more(tiny, workbench):
    assert influence(workbench, person_study(tiny), whole_step(None)) > 10 * 0.05


def test_records_of_nobody_known_are_not_trained_on(tiny, workbench):
    model = workbench.model(person_study(tiny))
    records = replace(crowd_and_one(1), persons=None)
    with pytest.raises(DataError, match="whose"):
        model.trainer.train(models.get_adapter(model.module), records, whole_step(2))


def clip_records_alone(patch):
    add = dpsgd.PrivateStep.add
    patch.setattr(dpsgd.PrivateStep, "add", lambda self, losses, *_: add(self, losses))


def sum_not_mean(patch):
    mean = dpsgd._mean_by_person

    def total(samples, persons):
        _, counts = torch.unique(persons, return_counts=True)
        return mean(samples, persons) * counts.view(-1, *[1] * (samples.dim() - 1))

    patch.setattr(dpsgd, "_mean_by_person", total)


def draw_records_not_persons(patch):
    patch.setattr(
        trainer,
        "person_batches",
        lambda persons, q, most, rng: trainer.poisson_batches(len(persons), q, rng),
    )


def one_record_too_many(patch):
    patch.setattr(
        trainer,
        "person_batches",
        lambda persons, q, most, rng: person_batches(persons, q, most + 1, rng),
    )


@pytest.mark.parametrize(
    ("plant", "why"),
    [
        (clip_records_alone, "clipped sum"),
        (sum_not_mean, "clipped sum"),
        (draw_records_not_persons, "records agreed on"),
        (one_record_too_many, "records agreed on"),
    ],
)
def test_the_self_test_finds_what_is_wrong_with_persons(
    tiny, workbench, monkeypatch, plant, why
):
    study = person_study(tiny, most=2)
    mechanism = plan(study, INSTITUTION)
    plant(monkeypatch)
    with pytest.raises(TrainingError, match=why):
        workbench.self_test(study, INSTITUTION, plant.__name__, 1, mechanism)


def a_site(folder, workbench):
    home = ClientHome(folder / "home")
    datasets = Datasets(home.open_database())
    datasets.add("notes", write_persons(folder / "notes.csv"))
    home.policy.write_text("allow_model_folders = true\n", encoding="utf-8")
    return home, datasets.get("notes"), build_site(home, INSTITUTION, workbench)


def ask(home, site, workbench, study, **fields):
    Agreements(home.open_database()).decide(KEY, INSTITUTION, study, "approve")
    first = models.initial_weights(workbench.model(study).module, 0)
    return wire.unpack(site.answer(update_request(study, first, **fields)))[0]


def test_a_site_trains_and_counts_by_person(tmp_path, tiny, workbench):
    home, _, site = a_site(tmp_path, workbench)
    study = person_study(tiny)
    assert isinstance(ask(home, site, workbench, study), wire.UpdateHeader)
    (entry,) = site.ledger.history("notes")
    assert entry.unit == "person (who)"
    assert entry.mechanism.sample_rate == pytest.approx(10 / PERSONS)


def test_a_ledger_of_persons_takes_no_records_and_the_other_way(tmp_path, tiny, workbench):
    for name, first, second in (
        ("a", person_study(tiny), tiny.study()),
        ("b", tiny.study(), person_study(tiny)),
    ):
        (tmp_path / name).mkdir()
        home, _, site = a_site(tmp_path / name, workbench)
        assert isinstance(ask(home, site, workbench, first), wire.UpdateHeader)
        refusal = ask(home, site, workbench, second, run="r2")
        assert (refusal.code, len(site.ledger.history("notes"))) == ("budget", 1)
        assert second.unit in refusal.reason


def test_a_record_of_nobody_is_refused_without_a_word_of_it(tmp_path, tiny, workbench):
    home, _, site = a_site(tmp_path, workbench)
    path = write_persons(tmp_path / "notes.csv")
    path.write_text(path.read_text().replace(",p7\n", ",\n", 1), encoding="utf-8")
    Datasets(home.open_database()).add("notes", path)
    refusal = ask(home, site, workbench, person_study(tiny))
    assert (refusal.code, site.ledger.history("notes")) == ("data", [])
    assert "who" not in refusal.reason.split()


def test_the_cache_keeps_whose_records_are_but_not_their_names(tmp_path, tiny, workbench):
    home, dataset, _ = a_site(tmp_path, workbench)
    study = person_study(tiny)
    tokenizer = workbench.model(study).tokenizer
    fresh = encode(home, dataset, study, tokenizer)
    again = encode(home, dataset, study, tokenizer)
    expected = person_numbers([f"p{i % PERSONS}" for i in range(120)])
    for records in (fresh, again):
        np.testing.assert_array_equal(records.persons, expected)
    assert encode(home, dataset, tiny.study(), tokenizer).persons is None
    assert len(list(home.cache.glob("*.arrow"))) == 2


def test_a_person_is_on_one_side_of_the_validation_split(tmp_path, tiny, workbench):
    home, dataset, _ = a_site(tmp_path, workbench)
    study = person_study(tiny, evaluation={"site_metrics": "raw", "validation_fraction": 0.4})
    records = encode(home, dataset, study, workbench.model(study).tokenizer)
    found = split(study, records)
    training, validation = set(found.training.persons), set(found.validation.persons)
    assert len(training) + len(validation) == PERSONS
    assert min(len(training), len(validation)) > 3
    without = records.select(np.flatnonzero(records.persons != records.persons[0]))
    moved = split(study, without)
    assert set(moved.validation.persons) == validation - {records.persons[0]}


def test_private_metrics_count_persons_and_are_paid_for_by_person(tmp_path, tiny, workbench):
    home, _, site = a_site(tmp_path, workbench)
    evaluation = {"site_metrics": "private", "validation_fraction": 0.4, "per_class": True}
    study = person_study(tiny, evaluation=evaluation)
    found = ask(home, site, workbench, study).metrics
    assert (found.kind, found.classes) == ("private", 2)
    release = plan_metrics(study)
    assert found.count_noise == pytest.approx(release.noise_multiplier * 1.5**0.5)
    assert found.accuracy_noise == pytest.approx(found.count_noise / (0.4 * PERSONS))
    (entry,) = site.ledger.history("notes")
    assert (entry.unit, entry.metrics) == ("person (who)", release)


def test_the_self_test_stands_for_persons(tiny, workbench):
    for most in (1, 2, 9):
        study = person_study(tiny, most=most)
        workbench.self_test(study, INSTITUTION, f"most {most}", 1, plan(study, INSTITUTION))
    assert selftest.FAILS_BY_CHANCE < 1e-8
