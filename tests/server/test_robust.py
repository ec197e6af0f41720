"""Rules that bear bad sites: each against its algorithm, and against sites that attack."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import RunError
from fedpact.server import aggregation
from fedpact.server.aggregation import Standing
from support.round_fakes import study_among

P = 40
MANIFEST = Manifest(("x.lora_B.weight", "head.weight"), ((10, 3), (10,)))
NEEDS = {
    "median": 3,
    "trimmed-mean": 3,
    "geometric-median": 3,
    "centred-clipping": 3,
    "krum": 5,
    "multi-krum": 5,
}
BOUNDED = ("norm-bounding", "centred-clipping")
SEEDS = st.integers(0, 2**32 - 1)

each_rule = pytest.mark.parametrize("rule", NEEDS)


def combined(rule, updates, *, bad_sites=1, bound=1.0, sizes=None) -> np.ndarray:
    """The one change that a rule makes of updates of shape [sites, P]."""
    fields = {"robust": rule, "bad_sites": bad_sites}
    if rule in BOUNDED:
        fields["norm_bound"] = bound
    names = [f"S{number}" for number in range(len(updates))]
    quorum = {"quorum": len(updates)}
    study = study_among(*names, aggregation=fields, federation=quorum)
    zero = Weights(MANIFEST, np.zeros(P, dtype=np.float32))
    total = aggregation.Round(study, Standing(zero), 1)
    for update, size in zip(updates, sizes or [1] * len(updates), strict=True):
        total.add(Weights(MANIFEST, np.float32(update)), size)
    return total.result().adapter.flat.astype(np.float64)


def drawn(seed, sites=7) -> np.ndarray:
    """Updates as honest sites send them: one direction and much of their own."""
    rng = np.random.default_rng(seed)
    return np.float32(1 + rng.standard_normal((sites, P))).astype(np.float64)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


# Each against its algorithm, written plainly


@given(seed=SEEDS, sites=st.integers(3, 9))
def test_the_median_of_every_coordinate(seed, sites):
    updates = drawn(seed, sites)
    plain = []
    for column in updates.T:
        ordered = sorted(column)
        middle = len(ordered) // 2
        pair = ordered[middle] if sites % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        plain.append(pair)
    close(combined("median", updates), plain)


@given(seed=SEEDS, bad_sites=st.integers(1, 3))
def test_the_trimmed_mean(seed, bad_sites):
    updates = drawn(seed, 7)
    plain = [np.mean(sorted(column)[bad_sites : 7 - bad_sites]) for column in updates.T]
    close(combined("trimmed-mean", updates, bad_sites=bad_sites), plain)


def krum_scores(updates, bad_sites):
    scores = []
    for i, one in enumerate(updates):
        apart = sorted(sum((one - x) ** 2) for j, x in enumerate(updates) if j != i)
        scores.append(sum(apart[: len(updates) - bad_sites - 2]))
    return scores


@given(seed=SEEDS, bad_sites=st.integers(1, 2))
def test_krum_takes_the_update_of_the_least_score(seed, bad_sites):
    updates = drawn(seed, 8)
    scores = krum_scores(updates, bad_sites)
    close(combined("krum", updates, bad_sites=bad_sites), updates[scores.index(min(scores))])


@given(seed=SEEDS, bad_sites=st.integers(1, 2))
def test_multi_krum_takes_the_mean_of_the_best(seed, bad_sites):
    updates = drawn(seed, 8)
    scores = krum_scores(updates, bad_sites)
    best = sorted(range(8), key=scores.__getitem__)[: 8 - bad_sites - 2]
    close(combined("multi-krum", updates, bad_sites=bad_sites), updates[best].mean(axis=0))


@given(seed=SEEDS, sites=st.integers(3, 9))
def test_no_point_is_nearer_to_all_than_the_geometric_median(seed, sites):
    updates = drawn(seed, sites)

    def total(point):
        return np.linalg.norm(updates - point, axis=1).sum()

    found = combined("geometric-median", updates)
    rng = np.random.default_rng(seed)
    for length in (1e-3, 1e-1, 1.0):
        for step in rng.standard_normal((5, P)):
            assert total(found + length * step) >= total(found) - 1e-6
    # Where it is none of the updates, the directions to them cancel.
    towards = (updates - found) / np.linalg.norm(updates - found, axis=1, keepdims=True)
    np.testing.assert_allclose(towards.sum(axis=0), 0, atol=1e-4)


@given(seed=SEEDS, bound=st.floats(0.1, 20))
def test_norm_bounding_is_the_weighted_mean_of_what_is_cut(seed, bound):
    updates, sizes = drawn(seed), [1, 2, 3, 4, 5, 6, 7]
    cut = [x * min(1, bound / np.sqrt(sum(x**2))) for x in updates]
    plain = np.average(cut, axis=0, weights=sizes)
    close(combined("norm-bounding", updates, bound=bound, sizes=sizes), plain)


@given(seed=SEEDS, bound=st.floats(0.1, 20))
def test_centred_clipping_draws_in_what_is_far_from_the_centre(seed, bound):
    updates = drawn(seed)
    centre = np.median(updates, axis=0)
    for _ in range(3):
        centre = centre + np.mean(
            [(x - centre) * min(1, bound / np.linalg.norm(x - centre)) for x in updates], axis=0
        )
    close(combined("centred-clipping", updates, bound=bound), centre)


# Sites that attack, knowing all that the honest send


def sign_flipping(honest, bad, rng):
    del rng
    return np.tile(-10 * honest.mean(axis=0), (bad, 1))


def scaled_noise(honest, bad, rng):
    return 1e3 * rng.standard_normal((bad, honest.shape[1]))


def a_little_is_enough(honest, bad, rng):
    """Baruch et al. (NeurIPS 2019): as far as hides within the honest sites' own spread."""
    del rng
    return np.tile(honest.mean(axis=0) - 1.0 * honest.std(axis=0), (bad, 1))


def collusion(honest, bad, rng):
    """All the bad say the same, far away: to each other they are the nearest."""
    return np.tile(50 * rng.standard_normal(honest.shape[1]), (bad, 1))


def overflow(honest, bad, rng):
    """The largest that a float32 holds: what is finite must not make the rest vanish."""
    del rng
    return np.full((bad, honest.shape[1]), 3e38)


ATTACKS = (sign_flipping, scaled_noise, a_little_is_enough, collusion, overflow)


@each_rule
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("bad", [1, 2])
def test_the_result_stays_as_near_to_the_honest_mean_as_the_honest_are(rule, attack, bad):
    rng = np.random.default_rng(bad)
    honest = drawn(3, sites=9 - bad)
    updates = rng.permutation(np.vstack([honest, attack(honest, bad, rng)]))
    found = combined(rule, updates, bad_sites=bad)
    mean = honest.mean(axis=0)
    farthest = np.linalg.norm(honest - mean, axis=1).max()
    assert np.linalg.norm(found - mean) <= farthest


@pytest.mark.parametrize("attack", [sign_flipping, scaled_noise, collusion, overflow])
def test_the_mean_does_not(attack):
    """Without a rule, the same attacks carry the adapter away: the tests above can fail."""
    rng = np.random.default_rng(1)
    honest = drawn(3, sites=8)
    found = combined("none", np.vstack([honest, attack(honest, 1, rng)]))
    mean = honest.mean(axis=0)
    assert np.linalg.norm(found - mean) > np.linalg.norm(honest - mean, axis=1).max()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_under_norm_bounding_a_site_moves_the_result_by_its_share_of_the_bound(attack):
    rng = np.random.default_rng(1)
    honest = drawn(3, sites=8)
    with_attack = np.vstack([honest, attack(honest, 1, rng)])
    without = np.vstack([honest, np.zeros((1, P))])
    moved = combined("norm-bounding", with_attack) - combined("norm-bounding", without)
    assert np.linalg.norm(moved) <= 1.0 / 9 + 1e-6


@each_rule
def test_one_more_bad_site_than_it_bears_carries_it_away(rule):
    """The bound that the docstrings state is where the rule breaks, not somewhere beyond."""
    rng = np.random.default_rng(0)
    honest = 1 + 0.1 * rng.standard_normal((2, P))
    bad = np.tile(1e4 * rng.standard_normal(P), (3, 1))
    found = combined(rule, np.vstack([honest, bad]))
    assert np.linalg.norm(found - honest.mean(axis=0)) > 1e3


# What holds for all of them


@each_rule
@given(seed=SEEDS)
def test_sites_that_agree_are_taken_at_their_word(rule, seed):
    one = drawn(seed, 1)[0]
    close(combined(rule, np.tile(one, (5, 1))), one)


@each_rule
@given(seed=SEEDS)
def test_the_order_and_the_declared_sizes_do_not_matter(rule, seed):
    updates = drawn(seed)
    found = combined(rule, updates)
    rng = np.random.default_rng(seed)
    close(combined(rule, rng.permutation(updates)), found)
    np.testing.assert_array_equal(
        combined(rule, updates, sizes=[10**6, 1, 1, 1, 1, 1, 1]), found
    )


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "geometric-median"])
@given(seed=SEEDS)
def test_the_basis_does_not_matter_where_distances_alone_count(rule, seed):
    """So that a method that rotates B and A between rounds makes the rule no other one."""
    updates = drawn(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((P, P)))[0]
    turned = combined(rule, updates @ rotation)
    np.testing.assert_allclose(turned @ rotation.T, combined(rule, updates), atol=1e-4)


@each_rule
def test_fewer_updates_than_it_needs_are_not_combined(rule):
    study = study_among(
        *"ABCDE",
        aggregation={"robust": rule, **({"norm_bound": 1.0} if rule in BOUNDED else {})},
        federation={"quorum": 5},
    )
    zero = Weights(MANIFEST, np.zeros(P, dtype=np.float32))
    total = aggregation.Round(study, Standing(zero), 1)
    with pytest.raises(RunError, match="no update"):
        total.result()
    for _ in range(NEEDS[rule] - 1):
        total.add(Weights(MANIFEST, np.ones(P, dtype=np.float32)), 1)
    with pytest.raises(RunError, match=f"needs {NEEDS[rule]} updates") as raised:
        total.result()
    assert "quorum" in raised.value.advice
