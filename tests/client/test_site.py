"""What a site does with a request, step by step, through `Site.answer` alone."""

import json
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pytest
from sqlalchemy import select

from fedpact.client.agreements import Agreements
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.site import Site
from fedpact.client.tables import DepartureRow, reading
from fedpact.client.up import build_site
from fedpact.client.workbench import Workbench
from fedpact.common import accounting, identity, wire
from fedpact.common import model as models
from fedpact.common.adapter import Weights
from fedpact.common.errors import StorageError, TrainingError
from fedpact.common.planned import plan, plan_metrics
from fedpact.common.study import Study
from support.site_factory import INSTITUTION, update_request
from support.tiny_bert import RECORDS, TinyBert, some_rows, write_data

ROUNDS = 3
KEY = identity.new_signing_key()


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    """One for all tests: the resident model carries nothing from one to the next."""
    return Workbench()


@dataclass
class Bench:
    """A site with a data set, its folder, and a study that it takes part in."""

    home: ClientHome
    site: Site
    study: Study
    tiny: TinyBert
    workbench: Workbench

    def initial(self, study: Study | None = None) -> Weights:
        study = study or self.study
        return models.initial_weights(self.workbench.model(study).module, study.training.seed)

    def ask(self, study: Study | None = None, weights: Weights | None = None, **fields):
        """Ask the site for a study that it has signed; its reply, taken apart."""
        study = study or self.study
        self.decide("approve", study)
        packet = update_request(study, weights or self.initial(), **fields)
        return wire.unpack(self.site.answer(packet))

    def refusal(self, *args, **fields) -> wire.Refusal:
        """Ask the site for what it must refuse: nothing is spent, and the refusal is logged."""
        before = self.history()
        header, array = self.ask(*args, **fields)
        assert isinstance(header, wire.Refusal), header
        assert array is None
        assert self.history() == before
        assert self.departures()[-1].kind == "refusal"
        return header

    def decide(self, kind, study: Study | None = None) -> None:
        agreements = Agreements(self.home.open_database())
        agreements.decide(KEY, INSTITUTION, study or self.study, kind)

    def history(self):
        return self.site.ledger.history("notes")

    def departures(self) -> list[DepartureRow]:
        with reading(self.home.open_database()) as session:
            return list(session.scalars(select(DepartureRow).order_by(DepartureRow.id)))

    def rule(self, text: str) -> None:
        """The site's policy; the tiny model is in a folder."""
        self.home.policy.write_text(f"allow_model_folders = true\n{text}", encoding="utf-8")


@pytest.fixture
def bench(tmp_path, tiny, workbench) -> Bench:
    home = ClientHome(tmp_path / "home")
    Datasets(home.open_database()).add("notes", write_data(tmp_path / "notes.csv"))
    site = build_site(home, INSTITUTION, workbench)
    made = Bench(home, site, tiny.study(), tiny, workbench)
    made.rule("")
    made.decide("approve")
    return made


# (1) The message is whole


def damaged(packet: wire.Packet, how: str) -> wire.Packet:
    match how:
        case "no header":
            return wire.Packet(header="")
        case "not JSON":
            return wire.Packet(header="{", array=packet.array)
        case "unknown field":
            header = json.dumps({**json.loads(packet.header), "code": "import os"})
            return wire.Packet(header=header, array=packet.array)
        case "short array":
            return wire.Packet(header=packet.header, array=packet.array[:-4])
        case _:
            return wire.Packet(header=packet.header, array=packet.array[:-1] + b"\x01")


@pytest.mark.parametrize(
    "how", ["no header", "not JSON", "unknown field", "short array", "altered array"]
)
def test_a_damaged_message_is_refused_and_costs_nothing(bench, how):
    packet = damaged(update_request(bench.study, bench.initial()), how)
    header, _ = wire.unpack(bench.site.answer(packet))
    assert isinstance(header, wire.Refusal)
    assert (header.code, header.run) == ("message", "unreadable")
    assert bench.history() == []


def test_an_update_is_no_request(bench):
    change = bench.initial()
    update = wire.UpdateHeader(
        run="r1",
        round=1,
        study_digest=bench.study.digest,
        change=wire.ArrayInfo.of(change),
        epsilon=None,
        steps=1,
    )
    header, _ = wire.unpack(bench.site.answer(wire.pack(update, change)))
    assert (header.code, header.reason) == ("message", "The message is not an update request.")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_refused(bench, value):
    weights = bench.initial()
    weights.flat[5] = value
    assert bench.refusal(weights=weights).code == "message"


# (2) The study is the one that its digest names, and the site takes part in it


def test_a_study_with_another_digest_is_refused(bench):
    refusal = bench.refusal(study_digest="0" * 64)
    assert (refusal.code, refusal.study_digest) == ("study", "0" * 64)
    assert "digest" in refusal.reason


def test_a_study_that_was_altered_is_refused_though_its_digest_was_agreed_to(bench):
    altered = bench.tiny.study(privacy={"target_epsilon": 8.5})
    refusal = bench.refusal(altered, bench.initial(), study_digest=bench.study.digest)
    assert refusal.code == "study"


@pytest.mark.parametrize("text", ["", "{}", "not JSON", " {} "])
def test_what_is_no_study_is_refused(bench, text):
    packet = update_request(bench.study, bench.initial(), study=text)
    assert wire.unpack(bench.site.answer(packet))[0].code == "study"


def test_a_study_that_is_not_canonical_is_refused(bench):
    spaced = json.dumps(json.loads(bench.study.canonical()), indent=1)
    packet = update_request(bench.study, bench.initial(), study=spaced)
    header, _ = wire.unpack(bench.site.answer(packet))
    assert (header.code, "canonical" in header.reason) == ("study", True)


def test_a_study_without_this_institution_is_refused(bench):
    others = [{"name": "Another", "sector": "industry", "records": RECORDS}]
    refusal = bench.refusal(bench.tiny.study(institutions=others))
    assert refusal.code == "study"
    assert f"{INSTITUTION} does not take part" in refusal.reason


def test_a_round_beyond_the_last_is_refused(bench):
    refusal = bench.refusal(round=ROUNDS + 1)
    assert (refusal.code, refusal.round) == ("study", ROUNDS + 1)
    assert "3 rounds, no more" in refusal.reason


def unsigned(bench, study=None, **fields):
    """Ask without signing first; what came back, taken apart."""
    study = study or bench.study
    packet = update_request(study, bench.initial(), **fields)
    return wire.unpack(bench.site.answer(packet))[0]


def test_a_study_that_was_not_signed_here_is_refused_and_costs_nothing(bench):
    changed = bench.tiny.study(study={"purpose": "another"})
    refusal = unsigned(bench, changed)
    assert isinstance(refusal, wire.Refusal)
    assert refusal.code == "policy"
    assert "has not signed" in refusal.reason
    assert bench.history() == []
    assert bench.departures()[-1].kind == "refusal"


@pytest.mark.parametrize(
    ("kind", "reason"), [("withdraw", "has withdrawn from"), ("refuse", "has refused")]
)
def test_after_saying_no_nothing_more_is_answered_not_even_again(bench, kind, reason):
    assert isinstance(unsigned(bench), wire.UpdateHeader)
    bench.decide(kind)
    spent = bench.history()
    for number in (1, 2):
        refusal = unsigned(bench, round=number)
        assert (refusal.kind, refusal.code) == ("refusal", "policy")
        assert reason in refusal.reason
    assert bench.history() == spent
    assert [d.kind for d in bench.departures()] == ["update", "refusal", "refusal"]
    bench.decide("approve")
    assert isinstance(unsigned(bench, round=2), wire.UpdateHeader)


def test_after_its_last_day_a_study_is_refused(bench):
    over = bench.tiny.study(governance={"until": "2020-01-31"})
    assert "last day" in bench.refusal(over).reason


# (3) A request that was answered before gets the same bytes again


def test_the_same_request_gets_the_same_bytes_and_is_not_reserved_again(bench, monkeypatch):
    packet = update_request(bench.study, bench.initial())
    first = bench.site.answer(packet)
    monkeypatch.setattr(bench.workbench, "train", lambda *_: pytest.fail("trained again"))
    # Neither a restart, nor the policy or data of today, change what has left already.
    bench.rule("tasks = []")
    restarted = build_site(bench.home, INSTITUTION, bench.workbench)
    assert bench.site.answer(packet) == first == restarted.answer(packet)
    assert len(bench.history()) == 1
    assert [departure.kind for departure in bench.departures()] == ["update"] * 3
    assert len({departure.sha256 for departure in bench.departures()}) == 1


def test_another_adapter_for_a_round_that_was_answered_gets_the_same_bytes_too(bench):
    first = bench.site.answer(update_request(bench.study, bench.initial()))
    weights = bench.initial()
    weights.flat[:] += 1
    assert bench.site.answer(update_request(bench.study, weights)) == first
    assert len(bench.history()) == 1


def test_an_update_that_is_kept_no_longer_is_not_made_again(bench):
    bench.ask()
    for path in bench.home.outbox.iterdir():
        path.unlink()
    assert bench.refusal().code == "budget"
    assert len(bench.history()) == 1


# (4) The site's own policy allows it


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("tasks = []", "task text-classification"),
        (f'models = ["{"0" * 64}"]', "not among those allowed"),
        ("max_epsilon = 7.9", "7.9 that is allowed"),
        ("max_delta = 1e-6", "1e-06 that is allowed"),
        ("minimum_records = 121", "fewer than the 121"),
        (f'studies = ["{"f" * 64}"]', "not among those allowed"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused(bench, rule, reason):
    bench.rule(rule)
    refusal = bench.refusal()
    assert refusal.code == "policy"
    assert reason in refusal.reason


@pytest.mark.parametrize(
    ("rule", "reason"), [("max_epsilonn = 100", "max_epsilonn"), ("max_epsilon = ", "not TOML")]
)
def test_a_policy_that_is_not_valid_allows_nothing_and_stays_at_home(bench, rule, reason):
    bench.rule(rule)
    refusal = bench.refusal()
    assert refusal.code == "policy"
    assert refusal.reason == "The site's policy cannot be used; the site's own log says why."
    at_home = bench.departures()[-1].summary["reason"]
    assert reason in at_home
    assert str(bench.home.policy) in at_home


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"privacy": {"mechanism": "none"}}, "no differential privacy"),
        ({"evaluation": {"site_metrics": "raw"}}, "metrics"),
        ({"model": {"sha256": None}}, "SHA-256"),
    ],
)
def test_the_policy_that_nobody_wrote_is_strict(bench, sections, reason):
    refusal = bench.refusal(bench.tiny.study(**sections))
    assert refusal.code == "policy"
    assert reason in refusal.reason


def test_without_a_policy_no_folder_is_looked_into(bench):
    bench.home.policy.unlink()
    refusal = bench.refusal()
    assert (refusal.code, "is a folder" in refusal.reason) == ("policy", True)


def test_in_quiet_hours_nothing_is_trained_but_what_left_goes_again(bench):
    bench.rule('quiet_hours = "22:00-06:00"')
    hour = datetime.fromisoformat
    noon = replace(bench.site, now=lambda: hour("2026-03-01T12:00+01:00"))
    night = replace(bench.site, now=lambda: hour("2026-03-01T23:00+01:00"))
    packet = update_request(bench.study, bench.initial())
    header, array = wire.unpack(night.answer(packet))
    assert (header.code, array, bench.history()) == ("policy", None, [])
    assert "they end at 2026-03-02T06:00+01:00" in header.reason
    first = noon.answer(packet)
    assert night.answer(packet) == first


def test_one_study_costs_no_more_than_the_policy_gives_it_however_often_it_runs(bench):
    bench.rule("max_epsilon = 100\nmax_epsilon_per_study = 8.0")
    for number in range(1, ROUNDS + 1):
        assert isinstance(bench.ask(round=number)[0], wire.UpdateHeader)
    refusal = bench.refusal(run="r2")
    assert refusal.code == "budget"
    assert "bring the study" in bench.departures()[-1].summary["reason"]
    other = bench.tiny.study(study={"name": "another"})
    assert isinstance(bench.ask(other, run="r3")[0], wire.UpdateHeader)


def test_what_was_not_foreseen_is_refused_without_a_word_and_the_site_goes_on(
    bench, monkeypatch
):
    def broken(*_):
        raise IndexError("Record 17 says 'coma'.")

    with monkeypatch.context() as patch:
        patch.setattr(bench.workbench, "train", broken)
        header, array = bench.ask()
    assert (header.code, array) == ("training", None)
    assert "17" not in header.reason
    assert isinstance(bench.ask(round=2)[0], wire.UpdateHeader)


def test_the_policy_is_read_anew_for_each_request(bench):
    bench.rule("max_epsilon = 1.0")
    assert bench.refusal().code == "policy"
    bench.rule("max_epsilon = 8.0")
    assert isinstance(bench.ask()[0], wire.UpdateHeader)
    bench.rule("max_epsilon = 1.0")
    assert bench.refusal(round=2).code == "policy"


# (5) The data set and the base model are at hand, and the adapter fits


def test_a_data_set_that_was_never_added_is_refused(bench):
    assert bench.refusal(bench.tiny.study(study={"dataset": "others"})).code == "data"


def test_which_data_set_is_meant_must_be_clear(bench, tmp_path):
    datasets = Datasets(bench.home.open_database())
    datasets.add("more", write_data(tmp_path / "more.csv", seed=1))
    assert bench.refusal().code == "data"
    named = bench.tiny.study(study={"dataset": "notes"})
    assert isinstance(bench.ask(named)[0], wire.UpdateHeader)


def test_a_data_set_that_changed_is_refused_and_what_it_says_stays_at_home(bench, tmp_path):
    bench.ask()
    write_data(tmp_path / "notes.csv", seed=1)
    refusal = bench.refusal(round=2)
    assert refusal.code == "data"
    assert "notes" not in refusal.reason
    assert "notes" in bench.departures()[-1].summary["reason"]


def test_labels_that_the_study_does_not_know_are_refused_and_stay_at_home(bench, caplog):
    with caplog.at_level("DEBUG"):
        refusal = bench.refusal(bench.tiny.study(task={"labels": ["mild", "other"]}))
    assert refusal.code == "data"
    assert "severe" not in refusal.reason
    # Nor in the log, which travels: only in the site's own database.
    assert "refused (data)" in caplog.text
    assert "severe" not in caplog.text
    assert "severe" in bench.departures()[-1].summary["reason"]


def test_another_base_model_is_refused(bench):
    refusal = bench.refusal(bench.tiny.study(model={"sha256": "0" * 64}))
    assert refusal.code == "model"
    assert "0" * 64 not in refusal.reason
    assert "0" * 64 in bench.departures()[-1].summary["reason"]


def test_a_base_model_that_is_not_there_is_refused_and_the_path_stays_at_home(bench, tmp_path):
    refusal = bench.refusal(bench.tiny.study(model={"base": str(tmp_path / "nowhere")}))
    assert refusal.code == "model"
    assert "nowhere" not in refusal.reason
    assert "nowhere" in bench.departures()[-1].summary["reason"]


def test_an_adapter_of_another_shape_is_refused(bench):
    larger = bench.tiny.study(adapter={"r": 4})
    assert bench.refusal(bench.study, bench.initial(larger)).code == "model"
    half = bench.initial().select(bench.initial().manifest.names[1:])
    assert bench.refusal(bench.study, half).code == "model"


# (6) The ledger reserves what the round costs, durably


def test_a_data_set_whose_budget_is_used_up_is_refused(bench):
    bench.rule("max_epsilon = 8.0")
    for number in range(1, ROUNDS + 1):
        assert isinstance(bench.ask(round=number)[0], wire.UpdateHeader)
    refusal = bench.refusal(run="r2")
    assert refusal.code == "budget"
    assert refusal.reason == "The privacy budget does not allow 2 more steps here."
    assert "above its limit of 8" in bench.departures()[-1].summary["reason"]
    bench.rule("max_epsilon = 20.0")
    assert isinstance(bench.ask(run="r2")[0], wire.UpdateHeader)


def test_a_promise_that_no_noise_keeps_is_refused(bench):
    hopeless = bench.tiny.study(privacy={"target_epsilon": 1e-5, "target_delta": 1e-9})
    assert bench.refusal(hopeless).code == "budget"


def test_it_is_reserved_before_training_begins(bench, monkeypatch):
    train = bench.workbench.train
    seen = []

    def watched(*args):
        fresh = build_site(bench.home, INSTITUTION, bench.workbench)  # what is on disk
        seen.extend(fresh.ledger.history("notes"))
        return train(*args)

    monkeypatch.setattr(bench.workbench, "train", watched)
    bench.ask()
    (reservation,) = seen
    assert reservation.mechanism == plan(bench.study, INSTITUTION)
    assert reservation.settled_at is None


def test_a_crash_in_training_is_taken_up_without_reserving_again(bench, monkeypatch):
    packet = update_request(bench.study, bench.initial())

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.workbench, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.site.answer(packet)
    (standing,) = bench.history()
    assert standing.settled_at is None
    spent = bench.site.ledger.spent("notes", 1e-5)
    assert spent > 0
    assert bench.departures() == []

    restarted = build_site(bench.home, INSTITUTION, bench.workbench)
    header, change = wire.unpack(restarted.answer(packet))
    assert isinstance(header, wire.UpdateHeader)
    assert change.flat.any()
    (settled,) = bench.history()
    assert settled.id == standing.id
    assert settled.settled_steps == 2
    assert header.epsilon == spent == bench.site.ledger.spent("notes", 1e-5)


def test_a_crash_after_settling_is_taken_up_too(bench, monkeypatch):
    packet = update_request(bench.study, bench.initial())

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.site.gate), "release", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.site.answer(packet)
    assert isinstance(wire.unpack(bench.site.answer(packet))[0], wire.UpdateHeader)
    assert len(bench.history()) == 1


def test_a_reservation_of_another_mechanism_is_not_taken_up(bench):
    other = plan(bench.tiny.study(privacy={"target_epsilon": 4.0}), INSTITUTION)
    bench.site.ledger.reserve("notes", bench.study, "r1", 1, other, cap=100.0)
    refusal = bench.refusal()
    assert (refusal.code, "already been reserved" in refusal.reason) == ("budget", True)


# (7) Training, (8) the ledger settles


def test_a_whole_run_changes_the_adapter_and_keeps_the_promise(bench):
    weights, spent = bench.initial(), []
    for number in range(1, ROUNDS + 1):
        header, change = bench.ask(weights=weights, round=number)
        assert isinstance(header, wire.UpdateHeader)
        assert (header.run, header.round, header.steps) == ("r1", number, 2)
        assert header.study_digest == bench.study.digest
        assert header.metrics is None
        assert all(tensor.any() for tensor in change.tensors().values())
        spent.append(header.epsilon)
        weights = weights.plus(change)
    assert 0 < spent[0] < spent[1] < spent[2] <= 8.0
    assert spent[-1] == bench.site.ledger.spent("notes", 1e-5)
    assert spent[-1] > 0.98 * 8.0, "noise that was not needed"
    assert [entry.settled_steps for entry in bench.history()] == [2, 2, 2]
    assert bench.site.gate.bytes_out("r1") == sum(d.bytes for d in bench.departures())


def test_only_what_the_study_trains_leaves(bench):
    names = {}
    for method in ("ffa-lora", "fedavg"):
        study = bench.tiny.study(aggregation={"method": method})
        bench.rule("max_epsilon = 100")
        _, change = bench.ask(study, run=method)
        names[method] = change.manifest.names
    assert names["fedavg"] == bench.initial().manifest.names
    frozen = {name for name in names["fedavg"] if ".lora_A." in name}
    assert frozen
    assert set(names["fedavg"]) - set(names["ffa-lora"]) == frozen


def test_the_noise_is_planned_for_all_rounds_from_declared_sizes(bench):
    """Sampling rate and noise follow from public numbers: the file's size is not one."""
    declared = [{"name": INSTITUTION, "sector": "academia", "records": 240}]
    study = bench.tiny.study(institutions=declared)
    bench.ask(study)
    (reservation,) = bench.history()
    assert reservation.mechanism.sample_rate == 24 / 240
    whole = accounting.epsilon([reservation.mechanism] * ROUNDS, 1e-5)
    assert 0.98 * 8.0 < whole <= 8.0


def test_training_that_fails_is_said_without_why_and_is_not_tried_again(bench, monkeypatch):
    def failing(*_):
        raise TrainingError("Record 17 says 'coma'.")

    with monkeypatch.context() as patch:
        patch.setattr(bench.workbench, "train", failing)
        header, _ = bench.ask()
    assert header.code == "training"
    assert "17" not in header.reason
    assert bench.departures()[-1].kind == "failure"
    (reservation,) = bench.history()
    assert reservation.counted_steps == 2
    assert bench.refusal().code == "budget"


def test_a_study_without_privacy_runs_where_the_policy_allows_it(bench):
    study = bench.tiny.study(privacy={"mechanism": "none"})
    bench.rule("require_dp = false")
    header, change = bench.ask(study)
    assert header.epsilon is None
    assert change.flat.any()
    assert bench.site.ledger.spent("notes", 1e-5) == float("inf")
    assert plan(study, INSTITUTION) is None


def test_a_ledger_that_cannot_be_written_stops_the_site_before_training(bench, monkeypatch):
    def full(*_, **__):
        raise StorageError("The disk is full.")

    monkeypatch.setattr(type(bench.site.ledger), "reserve", full)
    monkeypatch.setattr(bench.workbench, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(StorageError):
        bench.ask()
    assert bench.departures() == []


# (9) The gate checks, writes down and releases


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("share", "leaves"), [(0.999, True), (1.001, False)])
def test_what_is_larger_than_clipping_and_noise_allow_stays(
    bench, monkeypatch, optimizer, share, leaves
):
    study = bench.tiny.study(training={"optimizer": optimizer})
    train = bench.workbench.train
    bound = bench.workbench.largest_change(
        study, INSTITUTION, bench.initial(study), plan(study, INSTITUTION)
    )

    def scaled(*args):
        trained = train(*args)
        assert trained.change.norm < bound, "honest training is far below"
        factor = np.float32(share * bound / trained.change.norm)
        change = Weights(trained.change.manifest, factor * trained.change.flat)
        return replace(trained, change=change)

    monkeypatch.setattr(bench.workbench, "train", scaled)
    header, _ = bench.ask(study)
    assert (header.kind == "update") is leaves
    if not leaves:
        assert header.code == "training"
        assert "norm" not in header.reason
        assert "clipping and noise allow" in bench.departures()[-1].summary["reason"]
        assert bench.refusal(study).code == "budget", "it is not trained again"


def tokens(records) -> list[bytes]:
    bounds = zip(records.offsets[:-1], records.offsets[1:], strict=True)
    return [records.ids[start:end].tobytes() for start, end in bounds]


@pytest.fixture
def spied(bench, monkeypatch):
    """What the site trained on and measured on."""
    seen = {}
    train, measure = bench.workbench.train, bench.workbench.measure

    def watched_train(study, institution, weights, records, mechanism):
        seen["trained"] = records
        return train(study, institution, weights, records, mechanism)

    def watched_measure(study, weights, records):
        seen["measured"], seen["weights"] = records, weights
        return measure(study, weights, records)

    monkeypatch.setattr(bench.workbench, "train", watched_train)
    monkeypatch.setattr(bench.workbench, "measure", watched_measure)
    return seen


def test_metrics_leave_by_double_consent_and_validation_records_are_never_trained(bench, spied):
    study = bench.tiny.study(evaluation={"site_metrics": "raw", "validation_fraction": 0.3})
    bench.rule("allow_site_metrics = true")
    weights = bench.initial()
    header, _ = bench.ask(study, weights)
    trained, measured = tokens(spied["trained"]), tokens(spied["measured"])
    assert 0 < len(measured) < len(trained)
    assert len(trained) + len(measured) == len(some_rows())
    assert not set(trained) & set(measured)
    # The adapter that was received is measured, not the one that training made of it.
    assert spied["weights"].digest == weights.digest
    # A head at zero guesses evenly.
    assert header.metrics.loss == pytest.approx(np.log(2))
    assert header.metrics.kind == "raw"
    assert bench.departures()[-1].summary["metrics"]["loss"] == header.metrics.loss
    bench.ask(study, weights, round=2)
    assert tokens(spied["measured"]) == measured


@pytest.mark.parametrize("rule", ["allow_site_metrics = true", "allow_site_metrics = false"])
def test_without_the_studys_consent_nothing_is_measured(bench, spied, rule):
    bench.rule(rule)
    header, _ = bench.ask()
    assert header.metrics is None
    assert "measured" not in spied
    assert len(spied["trained"]) == RECORDS


def test_a_data_set_too_small_to_split_is_refused(bench):
    study = bench.tiny.study(evaluation={"site_metrics": "raw", "validation_fraction": 1e-9})
    bench.rule("allow_site_metrics = true")
    assert bench.refusal(study).code == "data"


PRIVATE = {"evaluation": {"site_metrics": "private", "validation_fraction": 0.3}}


def test_private_metrics_are_paid_for_and_leave_under_any_policy(bench, spied):
    study = bench.tiny.study(**PRIVATE)
    weights, spent = bench.initial(study), []
    for number in range(1, ROUNDS + 1):
        header, change = bench.ask(study, weights, round=number)
        metrics = header.metrics
        assert (metrics.kind, "measured" in spied) == ("private", False)
        # A head at zero guesses; the noise is far wider than what is between any two means.
        assert metrics.accuracy_noise > 0.1
        assert metrics.loss != pytest.approx(np.log(2), abs=1e-6)
        assert len(spied["trained"]) < RECORDS
        assert bench.departures()[-1].summary["metrics"]["kind"] == "private"
        spent.append(header.epsilon)
        weights = weights.plus(change)
    release = plan_metrics(study)
    assert [entry.metrics for entry in bench.history()] == [release] * ROUNDS
    assert spent[0] < spent[1] < spent[2] <= 8.0
    assert spent[-1] == bench.site.ledger.spent("notes", 1e-5) > 0.98 * 8.0
    assert 0.39 < accounting.epsilon([release] * ROUNDS, 1e-5) <= 0.05 * 8.0
    # Training pays for them with more noise.
    alone = plan(bench.study, INSTITUTION).noise_multiplier
    assert plan(study, INSTITUTION).noise_multiplier > alone


def test_the_same_request_gets_the_same_metrics(bench):
    study = bench.tiny.study(**PRIVATE)
    bench.decide("approve", study)
    packet = update_request(study, bench.initial(study))
    assert bench.site.answer(packet) == bench.site.answer(packet)
    assert len(bench.history()) == 1


def test_that_nothing_was_set_aside_is_not_told(bench):
    """One more or one record less must not be the difference between metrics and a refusal."""
    study = bench.tiny.study(
        evaluation={"site_metrics": "private", "validation_fraction": 1e-9}
    )
    header, _ = bench.ask(study)
    assert header.metrics.kind == "private"


def test_metrics_are_reserved_before_they_are_measured(bench, monkeypatch):
    study = bench.tiny.study(**PRIVATE)

    def killed(*_):
        raise KeyboardInterrupt

    bench.decide("approve", study)
    packet = update_request(study, bench.initial(study))
    with monkeypatch.context() as patch:
        patch.setattr(bench.workbench, "measure_privately", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.site.answer(packet)
    (standing,) = bench.history()
    assert (standing.metrics, standing.settled_at) == (plan_metrics(study), None)
    # Another study under the same run does not take it up.
    assert bench.refusal().code == "study"
    assert isinstance(wire.unpack(bench.site.answer(packet))[0], wire.UpdateHeader)
    assert len(bench.history()) == 1


def test_under_rolora_the_round_decides_which_factor_a_site_trains(bench):
    study = bench.tiny.study(aggregation={"method": "rolora"})
    weights = bench.initial(study)
    for number, trained in ((1, ".lora_B."), (2, ".lora_A."), (3, ".lora_B.")):
        header, change = bench.ask(study, weights, round=number)
        assert isinstance(header, wire.UpdateHeader), header
        factors = {name for name in change.manifest.names if ".lora_" in name}
        assert factors
        assert all(trained in name for name in factors)
        assert any("classifier" in name for name in change.manifest.names)
        weights = weights.plus(change)
    assert all(np.any(change.tensors()[name]) for name in factors)
