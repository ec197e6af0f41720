"""The round loop, among sites that answer, lie, lag, replay and go away."""

import numpy as np
import pytest

from fedpact.common import wire
from fedpact.common.errors import RunError
from fedpact.common.evaluation import Metrics
from fedpact.server.round_needs import ClassCounts, Terms
from fedpact.server.rounds import Conductor
from support import liar
from support.round_fakes import FakeClock, FakeExchange, FakeRecord, lora_weights, study_among

START = lora_weights(0.5)
NAMES = ("A", "B", "C")


def study(*, quorum=2, **sections):
    federation = {"quorum": quorum, "deadline_seconds": 60.0}
    return study_among(*NAMES, federation=federation, **sections)


def everyone(**others) -> dict:
    return {**dict.fromkeys(NAMES, liar.honest()), **others}


def conduct(
    exchange, record=None, clock=None, measure=None, first_round=1, terms=None, **choices
):
    """Conduct a run; what it wrote down, and the adapter it ended with."""
    record = record or FakeRecord()
    terms = terms or (lambda: Terms(set(NAMES)))
    conductor = Conductor(
        study(**choices), "r1", exchange, record, terms, measure, clock=clock or FakeClock()
    )
    return record, conductor.conduct(START, first_round)


def trained_mean(weights) -> float:
    """What the adapter's trained values are; all the same, and A as it was."""
    tensors = weights.tensors()
    a = tensors.pop("base_model.model.bert.query.lora_A.weight")
    assert (a == 0.5).all()
    values = {float(x) for tensor in tensors.values() for x in tensor.flat}
    assert len(values) == 1
    return values.pop()


# What a round is


def test_every_round_changes_the_adapter_by_the_mean_and_is_written_down():
    exchange = FakeExchange(
        everyone(A=liar.honest(1.0), B=liar.honest(2.0), C=liar.honest(3.0))
    )
    record, weights = conduct(exchange)
    assert trained_mean(weights) == pytest.approx(0.5 + 3 * 2.0)
    assert record.events == [(e, n) for n in (1, 2, 3) for e in ("started", "ended")]
    assert record.weights[3].digest == weights.digest
    for number in (1, 2, 3):
        assert trained_mean(record.weights[number]) == pytest.approx(0.5 + 2.0 * number)
        assert record.states(number) == dict.fromkeys(NAMES, "updated")
    answer = record.answers[1]["A"]
    assert (answer.reason, answer.epsilon) == ("", 0.5)
    assert answer.norm == pytest.approx(10**0.5)
    assert len(answer.digest) == 64
    reply = liar.honest()(exchange.asked[0]["A"])
    assert answer.bytes_in == reply.size


def test_what_sites_count_by_class_is_written_down_where_the_study_asks_for_it():
    evaluation = {"site_metrics": "private", "per_class": True}
    exchange = FakeExchange(everyone(A=liar.counting_classes))
    record, _ = conduct(exchange, evaluation=evaluation)
    assert record.answers[1]["A"].classes == ClassCounts((10.0, -1.0), (2.0, 8.5), 1.5)
    assert record.answers[1]["B"].classes is None
    record, _ = conduct(FakeExchange(everyone(A=liar.counting_classes)))
    assert record.states(1)["A"] == "rejected"


def test_updates_weigh_as_much_as_the_size_that_was_declared():
    institutions = [
        {"name": name, "sector": "academia", "records": records}
        for name, records in zip(NAMES, (100, 200, 700), strict=True)
    ]
    exchange = FakeExchange(
        everyone(A=liar.honest(1.0), B=liar.honest(2.0), C=liar.honest(10.0))
    )
    _, weights = conduct(
        exchange, institutions=institutions, training={"rounds": 1, "batch_size": 50}
    )
    assert trained_mean(weights) == pytest.approx(0.5 + 0.1 + 0.4 + 7.0)


def test_each_request_says_all_that_a_site_must_check():
    exchange = FakeExchange(everyone())
    record, _ = conduct(exchange)
    for number, asked in enumerate(exchange.asked, start=1):
        assert set(asked) == set(NAMES)
        header, weights = wire.unpack(asked["A"])
        assert isinstance(header, wire.RequestHeader)
        assert (header.run, header.round) == ("r1", number)
        assert header.study == study().canonical()
        assert header.study_digest == study().digest
        before = START if number == 1 else record.weights[number - 1]
        assert weights.digest == before.digest


def test_seconds_are_the_rounds_own():
    clock = FakeClock()

    def slow(packet):
        clock.now += 2.5
        return liar.honest()(packet)

    record, _ = conduct(FakeExchange(everyone(B=slow), clock), clock=clock)
    assert record.seconds == {1: 2.5, 2: 2.5, 3: 2.5}


# Sites that lie


@pytest.mark.parametrize("lie", liar.REJECTED, ids=lambda lie: lie.__name__)
def test_a_lie_changes_nothing_and_the_round_goes_on(lie):
    record, weights = conduct(FakeExchange(everyone(B=lie)))
    assert trained_mean(weights) == pytest.approx(0.5 + 3 * 1.0)
    for number in (1, 2, 3):
        assert record.states(number) == {"A": "updated", "B": "rejected", "C": "updated"}
        answer = record.answers[number]["B"]
        assert answer.reason
        assert (answer.epsilon, answer.norm, answer.digest) == (None, None, None)
        assert answer.bytes_in == lie(wire_request(number)).size


def wire_request(number: int) -> wire.Packet:
    """A request as large as the round's own."""
    header = wire.RequestHeader(
        run="r1",
        round=number,
        study_digest=study().digest,
        study=study().canonical(),
        adapter=wire.ArrayInfo.of(START),
    )
    return wire.pack(header, START)


def test_a_replayed_update_counts_once():
    record, weights = conduct(FakeExchange(everyone(B=liar.Replaying())))
    assert [record.states(n)["B"] for n in (1, 2, 3)] == ["updated", "rejected", "rejected"]
    assert "for r1 round 1" in record.answers[2]["B"].reason
    assert trained_mean(weights) == pytest.approx(3.5)


def test_an_answer_that_comes_twice_counts_once():
    sites = everyone(A=liar.honest(4.0))
    record, weights = conduct(FakeExchange(sites, twice=["A", "B"]))
    assert record.states(1) == dict.fromkeys(NAMES, "updated")
    assert trained_mean(weights) == pytest.approx(0.5 + 3 * 2.0)


def test_a_second_answer_cannot_take_the_place_of_the_first():
    class Twice(FakeExchange):
        def ask(self, packets):
            super().ask(packets)
            self._waiting.appendleft(("A", liar.honest(1.0)(packets["A"])))

    sites = everyone(A=liar.not_a_number)
    record, weights = conduct(Twice(sites))
    assert record.states(1) == dict.fromkeys(NAMES, "updated")
    assert trained_mean(weights) == pytest.approx(3.5)


def test_an_answer_from_someone_who_was_not_asked_is_not_heard():
    class Crowded(FakeExchange):
        def ask(self, packets):
            super().ask(packets)
            self._waiting.append(("Z", liar.honest(100.0)(packets["A"])))

    record, weights = conduct(Crowded(everyone()))
    assert set(record.answers[1]) == set(NAMES)
    assert trained_mean(weights) == pytest.approx(3.5)


def test_a_refusal_is_named_and_the_round_goes_on():
    record, _ = conduct(FakeExchange(everyone(C=liar.refusing)))
    assert record.states(3) == {"A": "updated", "B": "updated", "C": "refused"}
    assert record.answers[3]["C"].reason == "policy: Not here."


def test_metrics_are_kept_where_the_study_asks_for_them():
    record, _ = conduct(
        FakeExchange(everyone(B=liar.metrics_not_asked_for)),
        evaluation={"site_metrics": "raw"},
    )
    answers = record.answers[1]
    assert (answers["B"].state, answers["B"].loss, answers["B"].accuracy) == (
        "updated",
        0.1,
        0.9,
    )
    assert (answers["A"].loss, answers["A"].accuracy) == (None, None)


# Sites that lag or go away


def test_after_the_deadline_a_round_goes_on_with_what_it_has():
    clock = FakeClock()
    record, weights = conduct(FakeExchange(everyone(), clock, silent=["B"]), clock=clock)
    assert record.states(1) == {"A": "updated", "B": "late", "C": "updated"}
    assert record.answers[1]["B"].reason == "No reply in 60 s."
    assert all(60 < seconds < 63 for seconds in record.seconds.values())
    assert trained_mean(weights) == pytest.approx(3.5)


def test_before_the_deadline_a_round_waits():
    clock = FakeClock()
    exchange = FakeExchange(everyone(), clock, silent=["B"])
    replies = exchange.replies

    def late_but_in_time():
        if clock.now > 1059 and exchange._silent:
            exchange._silent.clear()
            packet = exchange.asked[0]["B"]
            return {"B": liar.honest()(packet)}
        return replies()

    exchange.replies = late_but_in_time
    record, _ = conduct(exchange, clock=clock)
    assert record.states(1) == dict.fromkeys(NAMES, "updated")


def test_an_answer_to_the_last_round_does_not_count_in_this_one():
    """It comes late, first in the next round, and is for another round there."""
    clock = FakeClock()
    sites = everyone(B=liar.honest(100.0))
    record, weights = conduct(FakeExchange(sites, clock, behind=["B"]), clock=clock)
    assert [record.states(n)["B"] for n in (1, 2, 3)] == ["late", "rejected", "rejected"]
    assert trained_mean(weights) == pytest.approx(3.5)


def test_a_site_that_went_away_is_not_waited_for():
    clock = FakeClock()
    exchange = FakeExchange(everyone(), clock, vanishing=["C"])
    record, _ = conduct(exchange, clock=clock)
    assert record.states(1) == {"A": "updated", "B": "updated", "C": "lost"}
    assert "went away" in record.answers[1]["C"].reason
    assert record.seconds[1] < 2


# Quorum


def test_a_site_that_the_quorum_needs_is_waited_for_and_asked_the_same_again():
    exchange = FakeExchange(everyone(C=liar.honest(4.0)), returning=["B", "C"])
    record, weights = conduct(exchange, training={"rounds": 1})
    assert record.states(1) == dict.fromkeys(NAMES, "updated")
    first, again = exchange.asked
    assert again == {name: first[name] for name in ("B", "C")}
    assert trained_mean(weights) == pytest.approx(0.5 + 2.0)


def test_a_site_that_comes_back_is_not_asked_again_where_the_quorum_does_without():
    exchange = FakeExchange(everyone(), returning=["C"])
    record, _ = conduct(exchange, training={"rounds": 1})
    assert record.states(1) == {"A": "updated", "B": "updated", "C": "lost"}
    assert len(exchange.asked) == 1


def test_nobody_is_waited_for_who_cannot_make_up_the_quorum():
    clock, record = FakeClock(), FakeRecord()
    sites = everyone(A=liar.refusing, B=liar.refusing)
    began = clock.now
    with pytest.raises(RunError, match="Round 1 has 0 updates, its quorum is 2"):
        conduct(FakeExchange(sites, clock, vanishing=["C"]), record, clock)
    assert record.states(1)["C"] == "lost"
    assert clock.now - began < 2


@pytest.mark.parametrize(
    ("sites", "how", "state"),
    [
        ({"B": liar.not_a_number, "C": liar.not_a_number}, {}, "rejected"),
        ({"B": liar.refusing, "C": liar.refusing}, {}, "refused"),
        ({}, {"silent": ["B", "C"]}, "late"),
        ({}, {"vanishing": ["B", "C"]}, "lost"),
    ],
)
def test_a_round_below_its_quorum_does_not_count(sites, how, state):
    clock, record = FakeClock(), FakeRecord()
    with pytest.raises(RunError, match="Round 1 has 1 updates, its quorum is 2"):
        conduct(FakeExchange(everyone(**sites), clock, **how), record, clock)
    assert record.states(1) == {"A": "updated", "B": state, "C": state}
    assert record.events == [("started", 1)]


def test_the_quorum_itself_is_enough():
    record, _ = conduct(FakeExchange(everyone(B=liar.refusing, C=liar.refusing)), quorum=1)
    assert record.events[-1] == ("ended", 3)


class PassingTime(FakeClock):
    """A clock that moves on whenever it is looked at."""

    def __call__(self) -> float:
        self.now += 20.0
        return self.now


@pytest.fixture
def _no_rest(monkeypatch):
    monkeypatch.setattr("fedpact.server.rounds.time.sleep", lambda _: None)


@pytest.mark.usefixtures("_no_rest")
def test_the_first_round_waits_for_all_but_no_longer_than_the_deadline():
    exchange = FakeExchange({name: liar.honest() for name in ("A", "B")})
    record, _ = conduct(exchange, clock=PassingTime())
    assert [sorted(record.answers[n]) for n in (1, 2, 3)] == [["A", "B"]] * 3


@pytest.mark.usefixtures("_no_rest")
def test_a_site_that_comes_while_the_first_round_waits_takes_part():
    exchange = FakeExchange({name: liar.honest() for name in ("A", "B")})
    present = exchange.present

    def comes_later():
        exchange.sites.setdefault("C", liar.honest())
        return present()

    seen = iter([present])
    exchange.present = lambda: (next(seen, comes_later))()  # noqa: PLW0108 - each time another
    record, _ = conduct(exchange)
    assert set(record.answers[1]) == set(NAMES)


def test_later_rounds_wait_for_a_quorum_only_and_take_whoever_is_there():
    class Leaving(FakeExchange):
        def ask(self, packets):
            super().ask(packets)
            if len(self.asked) == 1:
                self.sites.pop("C")
            elif len(self.asked) == 2:
                self.sites["C"] = liar.honest()

    record, _ = conduct(Leaving(everyone()))
    assert [sorted(record.answers[n]) for n in (1, 2, 3)] == [
        ["A", "B", "C"],
        ["A", "B"],
        ["A", "B", "C"],
    ]


@pytest.mark.usefixtures("_no_rest")
def test_too_few_sites_end_the_run_before_anything_is_asked():
    exchange, record = FakeExchange({"A": liar.honest()}), FakeRecord()
    with pytest.raises(RunError, match="Round 1 needs 2 sites, 1 came") as raised:
        conduct(exchange, record, PassingTime())
    assert "fedpact client up" in raised.value.advice
    assert (exchange.asked, record.events) == ([], [])


def test_sites_of_others_are_not_asked():
    exchange = FakeExchange({**everyone(), "Stranger": liar.honest(100.0)})
    record, weights = conduct(exchange)
    assert set(exchange.asked[0]) == set(NAMES) == set(record.answers[1])
    assert trained_mean(weights) == pytest.approx(3.5)


# Stopping, resuming, measuring


def test_a_stop_request_ends_the_run_after_the_round_it_is_in():
    record, weights = conduct(FakeExchange(everyone()), FakeRecord(stop_before=3))
    assert [number for event, number in record.events if event == "ended"] == [1, 2]
    assert trained_mean(weights) == pytest.approx(2.5)


@pytest.mark.usefixtures("_no_rest")
def test_a_stop_request_ends_the_waiting_too():
    record = FakeRecord()
    stops = iter([False, True, True])
    record.should_stop = lambda: next(stops)
    exchange = FakeExchange({})
    record, weights = conduct(exchange, record)
    assert (exchange.asked, record.events, weights.digest) == ([], [], START.digest)


def test_a_run_goes_on_from_the_round_it_was_in():
    record, weights = conduct(FakeExchange(everyone()), first_round=3)
    assert record.events == [("started", 3), ("ended", 3)]
    assert trained_mean(weights) == pytest.approx(1.5)


def test_a_run_whose_rounds_are_over_changes_nothing():
    record, weights = conduct(FakeExchange({}), first_round=4)
    assert (record.events, weights.digest) == ([], START.digest)


class Measuring:
    def __init__(self) -> None:
        self.measured = []

    def __call__(self, weights) -> Metrics:
        self.measured.append(weights.digest)
        return Metrics(1.0, len(self.measured) / 10)


@pytest.mark.parametrize("first_round", [1, 2])
def test_each_rounds_adapter_is_measured_once_and_while_sites_train(first_round):
    measure = Measuring()
    record, _ = conduct(FakeExchange(everyone()), measure=measure, first_round=first_round)
    numbers = list(range(first_round, 4))
    assert measure.measured == [record.weights[number].digest for number in numbers]
    assert list(record.metrics) == numbers
    assert record.metrics[3].score == len(numbers) / 10
    for number in numbers[:-1]:
        # After the next round's sites were asked, before that round ends.
        start = record.events.index(("started", number + 1))
        assert start < record.events.index(("measured", number))
        assert record.events.index(("measured", number)) < record.events.index(
            ("ended", number + 1)
        )


@pytest.mark.parametrize(
    ("every", "rounds", "measured"),
    [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (2, 4, [2, 4]), (3, 3, [3]), (10, 3, [3])],
)
def test_an_adapter_is_measured_every_so_many_rounds_and_after_the_last(
    every, rounds, measured
):
    measure = Measuring()
    record, _ = conduct(
        FakeExchange(everyone()),
        measure=measure,
        training={"rounds": rounds, "batch_size": 50},
        evaluation={"data": "public.csv", "every": every},
    )
    assert list(record.metrics) == measured
    assert measure.measured == [record.weights[number].digest for number in measured]
    assert len(record.weights) == rounds


def test_a_run_that_is_stopped_is_measured_after_its_last_round_whatever_its_turn():
    record, _ = conduct(
        FakeExchange(everyone()),
        FakeRecord(stop_before=3),
        measure=Measuring(),
        evaluation={"data": "public.csv", "every": 10},
    )
    assert list(record.metrics) == [2]


def test_a_run_that_is_stopped_is_measured_to_its_last_round():
    measure = Measuring()
    record, _ = conduct(FakeExchange(everyone()), FakeRecord(stop_before=3), measure=measure)
    assert list(record.metrics) == [1, 2]


# What the agreement allows


class Changing:
    """Terms that are read for each round; the last one stays."""

    def __init__(self, *terms: Terms) -> None:
        self._terms = list(terms)

    def __call__(self) -> Terms:
        return self._terms.pop(0) if len(self._terms) > 1 else self._terms[0]


def test_who_withdrew_is_not_asked_any_more():
    exchange = FakeExchange(everyone())
    terms = Changing(Terms(set(NAMES)), Terms({"A", "C"}))
    record, _ = conduct(exchange, terms=terms)
    assert [set(asked) for asked in exchange.asked] == [set(NAMES), {"A", "C"}, {"A", "C"}]
    assert record.states(3) == {"A": "updated", "C": "updated"}


def test_who_did_not_sign_is_not_waited_for_in_the_first_round():
    record, _ = conduct(
        FakeExchange({"A": liar.honest(), "B": liar.honest()}), terms=lambda: Terms({"A", "B"})
    )
    assert record.states(1) == {"A": "updated", "B": "updated"}


def test_when_the_rule_no_longer_holds_the_run_ends_with_the_adapter_it_has():
    exchange = FakeExchange(everyone())
    terms = Changing(Terms(set(NAMES)), Terms({"A"}, "B withdrew."))
    record, weights = conduct(exchange, terms=terms)
    assert (record.reason, len(exchange.asked)) == ("B withdrew.", 1)
    assert trained_mean(weights) == pytest.approx(1.5)


def test_a_run_without_the_rule_met_asks_nobody():
    exchange = FakeExchange(everyone())
    record, weights = conduct(exchange, terms=lambda: Terms(set(), "vetoed"))
    assert (record.reason, exchange.asked, weights.digest) == ("vetoed", [], START.digest)


def test_too_few_who_agree_to_reach_the_quorum_end_the_run():
    terms = Changing(Terms(set(NAMES)), Terms({"A"}))
    record, _ = conduct(FakeExchange(everyone()), terms=terms, quorum=2)
    assert record.reason == "Only 1 institutions agree to the study, its quorum is 2."


def test_terms_are_read_anew_while_sites_are_waited_for():
    terms = Changing(*[Terms(set(NAMES))] * 3, Terms({"A"}, "vetoed"))
    record, _ = conduct(FakeExchange({}), terms=terms)
    assert record.reason == "vetoed"


# Methods, and what they leave on record


def test_under_rolora_sites_train_b_and_a_in_turn():
    exchange = FakeExchange(everyone())
    record, weights = conduct(exchange, aggregation={"method": "rolora"})
    a, b, head = (
        [record.weights[n].tensors()[name].flat[0] for n in (1, 2, 3)]
        for name in START.manifest.names
    )
    assert a == [0.5, 1.5, 1.5]
    assert b == [1.5, 1.5, 2.5]
    assert head == [1.5, 2.5, 3.5]
    assert weights.digest == record.weights[3].digest


def test_a_site_that_trains_the_wrong_factor_is_set_aside():
    always_b = liar.honest()

    def stuck_in_round_one(packet):
        header, adapter = wire.unpack(packet)
        first = header.model_copy(update={"round": 1})
        reply, change = wire.unpack(always_b(wire.pack(first, adapter)))
        return wire.pack(reply.model_copy(update={"round": header.round}), change)

    record, _ = conduct(
        FakeExchange(everyone(B=stuck_in_round_one)), aggregation={"method": "rolora"}
    )
    assert [record.states(n)["B"] for n in (1, 2, 3)] == ["updated", "rejected", "updated"]


def test_fedsvd_moves_a_and_keeps_the_product():
    exchange = FakeExchange(everyone())
    record, _ = conduct(exchange, aggregation={"method": "fedsvd"})
    a, b, _ = START.manifest.names
    first = record.weights[1].tensors()
    np.testing.assert_allclose(first[a] @ first[a].T, np.eye(2), atol=1e-6)
    product = (START.tensors()[b] + 1.0) @ START.tensors()[a]
    np.testing.assert_allclose(first[b] @ first[a], product, atol=1e-6)
    _, sent = wire.unpack(exchange.asked[1]["A"])
    assert sent.digest == record.weights[1].digest


def test_what_the_server_optimiser_remembers_is_kept_with_the_round():
    momentum = {"server_optimizer": "momentum", "server_momentum": 0.5}
    record, weights = conduct(FakeExchange(everyone()), aggregation=momentum)
    assert trained_mean(weights) == pytest.approx(0.5 + 1 + 1.5 + 1.75)
    assert [record.states_after[n].flat[0] for n in (1, 2, 3)] == [1.0, 1.5, 1.75]
    # A run that goes on from what was kept ends where the whole one did.
    conductor = Conductor(
        study(aggregation=momentum),
        "r1",
        FakeExchange(everyone()),
        FakeRecord(),
        lambda: Terms(set(NAMES)),
        clock=FakeClock(),
    )
    again = conductor.conduct(record.weights[1], 2, record.states_after[1])
    assert again.digest == weights.digest


def test_each_round_says_what_its_updates_were_like():
    against = everyone(C=liar.honest(-1.0))
    record, _ = conduct(FakeExchange(against))
    for number in (1, 2, 3):
        found = record.diagnoses[number]
        assert found.averaging_loss == 0.0
        assert found.mean_cosine == pytest.approx((1 - 1 - 1) / 3)
    record, _ = conduct(FakeExchange(against), aggregation={"method": "fedavg"})
    assert record.diagnoses[1].averaging_loss > 0.1


def test_a_robust_rule_bears_a_site_that_a_mean_would_not():
    far_off = everyone(C=liar.honest(1e6))
    record, weights = conduct(FakeExchange(far_off), aggregation={"robust": "median"}, quorum=3)
    assert record.states(1)["C"] == "updated"
    assert trained_mean(weights) == pytest.approx(0.5 + 3)


# Institutions of unlike ranks


def of_ranks(*ranks) -> dict:
    one = {"sector": "academia", "records": 1000}
    return {
        "adapter": {"r": 2},
        "aggregation": {"method": "flora"},
        "institutions": [{"name": n, "r": r, **one} for n, r in zip(NAMES, ranks, strict=True)],
    }


def test_each_site_is_sent_what_its_rank_holds_also_when_it_is_asked_again():
    exchange = FakeExchange(everyone(), returning=["A"])
    record, _ = conduct(exchange, quorum=3, **of_ranks(1, 2, 1))
    for packets in exchange.asked:
        for name, packet in packets.items():
            tensors = wire.unpack(packet)[1].tensors()
            shapes = [t.shape for n, t in tensors.items() if ".lora_" in n]
            assert shapes == ([(2, 4), (4, 2)] if name == "B" else [(1, 4), (4, 1)])
    assert exchange.asked[0]["A"] == exchange.asked[1]["A"]
    for number in (1, 2, 3):
        assert record.states(number) == dict.fromkeys(NAMES, "updated")
        assert set(record.sent[number]) == {"A", "C"}
    sent = wire.unpack(exchange.asked[0]["A"])[1]
    assert record.sent[1]["A"] == sent.digest != START.digest


def test_an_update_of_another_rank_than_the_sites_is_rejected():
    def whole(packet):
        asked = liar.Asked.of(packet)
        return asked.update(START.select(asked.trained.names))

    record, _ = conduct(FakeExchange(everyone(C=whole)), **of_ranks(1, 2, 1))
    assert record.states(1) == {"A": "updated", "B": "updated", "C": "rejected"}
    assert "shape" in record.answers[1]["C"].reason
