"""What each update was worth: a round without it, and nothing of the run changed by asking."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.adapter import Weights
from fedpact.common.evaluation import Metrics
from fedpact.server.aggregation import Standing
from fedpact.server.aggregation.clipped import Clipping
from fedpact.server.contributions import Contribution, LeaveOneOut
from fedpact.server.round_needs import Terms
from fedpact.server.rounds import Conductor
from support import liar
from support.round_fakes import FakeClock, FakeExchange, FakeRecord, lora_weights, study_among

NAMES = ("A", "B", "C", "D")
EVALUATION = {"data": "public.csv", "contributions": "leave-one-out"}
START = lora_weights(0.5)
SEEDS = st.integers(0, 2**32 - 1)
SITES = st.integers(2, 6)


def study(**sections):
    sections = {"aggregation": {"method": "fedavg"}, "evaluation": EVALUATION, **sections}
    return study_among(*NAMES, **sections)


def some_changes(seed, sites) -> list[Weights]:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((sites, START.manifest.size))
    return [Weights(START.manifest, values.astype(np.float32)) for values in drawn]


def left_out(changes, sizes=None, state=None, **sections) -> LeaveOneOut:
    found = LeaveOneOut(study(**sections), Standing(START, state), 1)
    for n, (change, size) in enumerate(zip(changes, sizes or [1] * len(changes), strict=True)):
        found.add(f"site {n}", change, size)
    return found


def along(weights) -> Metrics:
    """Measures an adapter by something linear in it."""
    length = float(weights.flat.astype(np.float64) @ np.arange(weights.manifest.size))
    return Metrics(-2 * length, length)


def worth(changes, sizes=None) -> list[Contribution]:
    mean = np.average([c.flat for c in changes], axis=0, weights=sizes)
    whole = along(START.plus(Weights(START.manifest, mean.astype(np.float32))))
    return list(left_out(changes, sizes).contributions(whole, along).values())


# What is left when one is left out


@given(seed=SEEDS, sites=SITES)
def test_the_mean_without_one_is_the_mean_of_the_others(seed, sites):
    changes = some_changes(seed, sites)
    without = dict(left_out(changes).adapters())
    assert list(without) == [f"site {n}" for n in range(sites)]
    for n, adapter in enumerate(without.values()):
        others = [change.flat for m, change in enumerate(changes) if m != n]
        np.testing.assert_allclose(
            adapter.flat, START.flat + np.mean(others, axis=0), atol=1e-6
        )


@given(seed=SEEDS, sites=SITES, data=st.data())
def test_the_weights_of_the_others_are_those_of_their_sizes(seed, sites, data):
    changes = some_changes(seed, sites)
    sizes = data.draw(st.lists(st.integers(1, 1000), min_size=sites, max_size=sites))
    for n, (_, adapter) in enumerate(left_out(changes, sizes).adapters()):
        kept = [m for m in range(sites) if m != n]
        mean = np.average(
            [changes[m].flat for m in kept], axis=0, weights=[sizes[m] for m in kept]
        )
        np.testing.assert_allclose(adapter.flat, START.flat + mean, atol=1e-5)


def test_the_server_optimiser_steps_from_the_state_before_the_round():
    momentum = {"method": "fedavg", "server_optimizer": "momentum", "server_momentum": 0.5}
    state = Weights.from_tensors(
        {f"m:{name}": np.full(t.shape, 4.0) for name, t in START.tensors().items()}
    )
    before = state.digest
    found = left_out([lora_weights(1.0), lora_weights(3.0)], state=state, aggregation=momentum)
    values = {name: set(adapter.flat) for name, adapter in found.adapters()}
    assert values == {"site 0": {0.5 + 2 + 3}, "site 1": {0.5 + 2 + 1}}
    assert state.digest == before


def test_the_clipping_norm_is_that_of_the_rounds_beginning_for_each():
    clipped = study(aggregation={"clip_norm": 1.0, "target_quantile": 0.3})
    clipping = Clipping(clipped, np.random.default_rng(0))
    found = LeaveOneOut(clipped, Standing(lora_weights(0.0)), 1, clipping)
    clipping.norm = 100.0  # what the round itself then does with it
    change = lora_weights(1.0)
    trained = change.select(n for n in change.manifest.names if ".lora_A." not in n)
    for name in NAMES:
        found.add(name, trained, 1000)
    # The mean is over all four institutions: three have sent something of norm 1.
    assert [a.norm for _, a in found.adapters()] == pytest.approx([3 / 4] * 4)
    assert clipping.norm == 100.0


@pytest.mark.parametrize("sites", [0, 1])
def test_of_a_single_update_nothing_is_said(sites):
    found = left_out(some_changes(0, sites))
    assert list(found.adapters()) == []
    assert found.contributions(Metrics(1.0, 0.5), along) == {}


@pytest.mark.parametrize(("sites", "told"), [(3, 0), (4, 4)])
def test_a_robust_rule_keeps_as_many_as_it_needs(sites, told):
    median = {"robust": "median"}
    trained = [name for name in START.manifest.names if ".lora_A." not in name]
    changes = [change.select(trained) for change in some_changes(0, sites)]
    found = left_out(changes, aggregation=median, federation={"quorum": 3})
    assert len(list(found.adapters())) == told


# What that was worth


@given(seed=SEEDS, sites=SITES)
def test_identical_updates_are_worth_the_same(seed, sites):
    found = worth(some_changes(seed, 1) * sites)
    assert len(found) == sites
    assert len(set(found)) == 1
    assert found[0].score == pytest.approx(0, abs=1e-4)


@given(seed=SEEDS, sites=SITES, data=st.data())
def test_a_score_that_is_linear_is_moved_as_far_as_an_update_is_from_the_mean(
    seed, sites, data
):
    changes = some_changes(seed, sites)
    sizes = data.draw(st.lists(st.integers(1, 100), min_size=sites, max_size=sites))
    shares = np.array(sizes) / sum(sizes)
    scores = np.array([along(change).score for change in changes])
    expected = shares / (1 - shares) * (scores - shares @ scores)
    found = worth(changes, sizes)
    np.testing.assert_allclose([one.score for one in found], expected, atol=1e-2)
    # `along` has a loss of twice as much the other way: both are positive where an update helps.
    np.testing.assert_allclose([one.loss for one in found], 2 * expected, atol=2e-2)


def test_what_is_no_number_is_not_given_out_as_one():
    found = left_out(some_changes(0, 2)).contributions(
        Metrics(math.inf, 0.5), lambda _: Metrics(math.inf, 0.25)
    )
    assert set(found.values()) == {Contribution(0.25, None)}


# In the round loop


def conduct(evaluation, sites=None, record=None, measure=along, **sections):
    record = record or FakeRecord()
    exchange = FakeExchange(
        sites or {name: liar.honest(n + 1.0) for n, name in enumerate(NAMES)}
    )
    conductor = Conductor(
        study(evaluation=evaluation, **sections),
        *("r1", exchange, record, lambda: Terms(set(NAMES)), measure),
        rng=np.random.default_rng(0),
        clock=FakeClock(),
    )
    return record, conductor.conduct(START)


@pytest.mark.parametrize(
    "aggregation",
    [
        *({"method": m} for m in ("ffa-lora", "fedavg", "fedsvd", "rolora")),
        *({"method": m} for m in ("flexlora", "fedex-lora", "flora", "hetlora")),
        {"method": "rolora", "server_optimizer": "yogi", "server_learning_rate": 0.1},
        {"robust": "median"},
        {"robust": "centred-clipping", "norm_bound": 0.5},
        {"clip_norm": 1.0},
        {"clip_norm": 1.0, "target_quantile": 0.3},
    ],
    ids=lambda choice: "-".join(map(str, choice.values())),
)
def test_the_run_is_the_same_to_the_bit_with_and_without(aggregation):
    sections = {"aggregation": aggregation, "federation": {"quorum": 3}}
    plain, last = conduct({"data": "public.csv"}, **sections)
    record, same = conduct(EVALUATION, **sections)
    assert same.digest == last.digest
    for number in (1, 2, 3):
        assert record.weights[number].digest == plain.weights[number].digest
        states = [r.states_after[number] for r in (record, plain)]
        assert len({state and state.digest for state in states}) == 1
        assert record.metrics[number] == plain.metrics[number]
        assert set(record.contributions[number]) == set(NAMES)
        assert plain.contributions[number] is None


def test_each_rounds_contributions_are_of_that_round():
    record, _ = conduct(EVALUATION)
    length = np.arange(START.manifest.size).sum()
    for number in (1, 2, 3):
        scores = [record.contributions[number][name].score for name in NAMES]
        # Changes are 1, 2, 3 and 4: without one, their mean is (10 - n) / 3.
        means = [2.5 - (10 - n) / 3 for n in (1, 2, 3, 4)]
        assert scores == pytest.approx([length * m for m in means], rel=1e-5)


def test_only_those_whose_update_counted_have_a_contribution():
    sites = {**dict.fromkeys(NAMES, liar.honest()), "C": lambda packet: packet}
    record, _ = conduct(EVALUATION, sites)
    assert record.states(1)["C"] == "rejected"
    assert set(record.contributions[1]) == {"A", "B", "D"}


def test_they_are_measured_in_the_rounds_that_are_measured_and_in_no_other():
    measured = []

    def measure(weights):
        measured.append(weights.digest)
        return along(weights)

    record, _ = conduct({**EVALUATION, "every": 2}, measure=measure)
    assert list(record.contributions) == [2, 3]
    assert len(measured) == 2 * (1 + len(NAMES))


def test_a_run_that_is_stopped_says_it_of_its_last_round():
    record, _ = conduct({**EVALUATION, "every": 10}, record=FakeRecord(stop_before=3))
    assert list(record.contributions) == [2]
    assert set(record.contributions[2]) == set(NAMES)
