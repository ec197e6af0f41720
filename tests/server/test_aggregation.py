"""Updates become one adapter: what holds for every method, and what for each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import RunError
from fedpact.server import aggregation
from fedpact.server.aggregation import Standing
from support.round_fakes import lora_weights, study_among

METHODS = (
    *("fedavg", "ffa-lora", "fedsvd", "rolora", "flexlora"),
    *("fedex-lora", "flora", "hetlora"),
)
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "head.weight"
# No LoRA pair is among these: every method takes their mean.
MANIFEST = Manifest(("a", "b"), ((2, 3), (4,)))
VALUES = arrays.arrays(
    np.float32, MANIFEST.size, elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
)
UPDATES = st.lists(st.tuples(VALUES, st.integers(1, 10**6)), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**32 - 1)

each_method = pytest.mark.parametrize("method", METHODS)


def aggregate(method, updates, manifest=MANIFEST) -> np.ndarray:
    """What a round changes in an adapter that is zero."""
    study = study_among("A", aggregation={"method": method})
    zero = Weights(manifest, np.zeros(manifest.size, dtype=np.float32))
    total = aggregation.Round(study, Standing(zero), 1)
    for values, weight in updates:
        total.add(Weights(manifest, values), weight)
    result = total.result().adapter
    assert result.manifest == manifest
    assert result.flat.dtype == np.float32
    return result.flat


@each_method
@given(updates=UPDATES)
def test_it_is_the_weighted_mean(method, updates):
    values, weights = zip(*updates, strict=True)
    mean = np.average(np.array(values, dtype=np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(aggregate(method, updates), mean, rtol=1e-6, atol=1e-4)


@each_method
@given(updates=UPDATES, order=st.randoms(use_true_random=False))
def test_the_order_in_which_updates_come_does_not_matter(method, updates, order):
    shuffled = order.sample(updates, len(updates))
    np.testing.assert_allclose(
        aggregate(method, updates), aggregate(method, shuffled), rtol=1e-6, atol=1e-6
    )


@each_method
@given(updates=UPDATES, factor=st.floats(1e-3, 1e3))
def test_only_the_proportions_of_weights_matter(method, updates, factor):
    scaled = [(values, weight * factor) for values, weight in updates]
    np.testing.assert_allclose(
        aggregate(method, updates), aggregate(method, scaled), rtol=1e-6, atol=1e-6
    )


@each_method
@given(values=VALUES, weight=st.integers(1, 10**6))
def test_one_update_is_its_own_mean(method, values, weight):
    np.testing.assert_allclose(aggregate(method, [(values, weight)]), values, rtol=1e-7)


@each_method
def test_many_small_updates_are_not_lost_in_rounding(method):
    """A float32 sum of these stops growing at 2^24."""
    ones = np.ones(MANIFEST.size, dtype=np.float32)
    updates = [(ones * 2**24, 1)] + [(ones, 1)] * 999
    exact = (2**24 + 999) / 1000
    np.testing.assert_allclose(aggregate(method, updates), exact, rtol=1e-7)


@each_method
def test_the_updates_added_are_left_as_they_were(method):
    values = np.arange(MANIFEST.size, dtype=np.float32)
    kept = values.copy()
    aggregate(method, [(values, 2), (values, 3)])
    np.testing.assert_array_equal(values, kept)


@each_method
def test_a_round_without_an_update_has_no_result(method):
    with pytest.raises(RunError, match="no update"):
        aggregate(method, [])


# Adapters with LoRA pairs: each method against its algorithm, written plainly


def drawn(seed: int, r=3, d_in=7, d_out=5, sites=4):
    """An adapter, what its sites have after local training of both factors, and their sizes."""
    rng = np.random.default_rng(seed)

    def one():
        shapes = {A: (r, d_in), B: (d_out, r), HEAD: (2, d_out)}
        return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}

    return one(), [one() for _ in range(sites)], rng.integers(1, 1000, sites)


def after_round(method, before, sites, sizes, number=1, **aggregation_fields):
    """The adapter after a round in which sites came to have what `sites` says."""
    study = study_among("A", aggregation={"method": method, **aggregation_fields})
    adapter = Weights.from_tensors(before)
    trained = aggregation.trained_manifest(study, adapter.manifest, number)
    total = aggregation.Round(study, Standing(adapter), number)
    for site, size in zip(sites, sizes, strict=True):
        total.add(
            Weights.from_tensors({n: site[n] - before[n] for n in trained.names}), int(size)
        )
    return total.result().adapter.tensors()


def mean(matrices, sizes):
    return np.average(np.array(matrices, dtype=np.float64), axis=0, weights=sizes)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("method", "frozen"),
    [
        ("fedavg", {1: [], 2: []}),
        ("flexlora", {1: [], 2: []}),
        ("fedex-lora", {1: [], 2: []}),
        ("flora", {1: [], 2: []}),
        ("hetlora", {1: [], 2: []}),
        ("ffa-lora", {1: [A], 2: [A]}),
        ("fedsvd", {1: [A], 2: [A]}),
        ("rolora", {1: [A], 2: [B], 3: [A], 4: [B]}),
    ],
)
def test_sites_train_what_the_method_trains_in_the_round(method, frozen):
    study = study_among("A", aggregation={"method": method})
    manifest = Manifest((A, B, HEAD), ((1, 1), (1, 1), (1, 1)))
    for number, left_out in frozen.items():
        trained = aggregation.trained_manifest(study, manifest, number)
        assert list(trained.names) == [n for n in manifest.names if n not in left_out]


@given(seed=SEEDS)
def test_fedavg_averages_each_tensor(seed):
    before, sites, sizes = drawn(seed)
    after = after_round("fedavg", before, sites, sizes)
    for name in (A, B, HEAD):
        close(after[name], mean([site[name] for site in sites], sizes))


@given(seed=SEEDS)
def test_the_mean_of_factors_is_the_mean_of_products_where_one_is_shared(seed):
    """What FFA-LoRA and RoLoRA are for; FedAvg, which shares none, is not exact."""
    before, sites, sizes = drawn(seed)
    for method, number, shared in (("ffa-lora", 1, A), ("rolora", 1, A), ("rolora", 2, B)):
        trained = [{**site, shared: before[shared]} for site in sites]
        after = after_round(method, before, trained, sizes, number)
        np.testing.assert_array_equal(after[shared], before[shared])
        close(after[B] @ after[A], mean([s[B] @ s[A] for s in trained], sizes))
        close(after[HEAD], mean([s[HEAD] for s in trained], sizes))
    averaged = after_round("fedavg", before, sites, sizes)
    products = mean([s[B] @ s[A] for s in sites], sizes)
    assert np.abs(averaged[B] @ averaged[A] - products).max() > 1e-2


@given(seed=SEEDS)
def test_fedsvd_is_the_svd_of_the_mean_product(seed):
    before, sites, sizes = drawn(seed)
    r = len(before[A])
    after = after_round("fedsvd", before, sites, sizes)
    product = mean([s[B] for s in sites], sizes) @ before[A].astype(np.float64)
    singular = np.linalg.svd(product, compute_uv=False)[:r]
    # These three say UΣVᵀ, but for signs and for the basis where singular values are equal.
    close(after[B] @ after[A], product)
    close(after[A] @ after[A].T, np.eye(r))
    close(after[B].T @ after[B], np.diag(singular**2))
    close(after[HEAD], mean([s[HEAD] for s in sites], sizes))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_fedsvd_keeps_a_whole_basis_where_b_has_not_its_full_rank(rank):
    """A site that trained nothing, or one direction: the rest of A must not vanish."""
    before, sites, sizes = drawn(0)
    for site in sites:
        site[B][:, rank:] = 0
    after = after_round("fedsvd", before, sites, sizes)
    close(after[B] @ after[A], mean([s[B] for s in sites], sizes) @ before[A])
    close(after[A] @ after[A].T, np.eye(3))
    assert np.linalg.matrix_rank(np.concatenate([after[A], before[A]]), tol=1e-4) == 3


@given(seed=SEEDS)
def test_fedsvd_moves_a_within_its_rows_and_under_sgd_walks_as_ffa_lora_does(seed):
    """The basis of A is another, its span is not; and SGD does not see the basis."""
    rng = np.random.default_rng(seed)
    d_out, d_in, r, sites, steps = 5, 7, 3, 3, 4
    targets = [rng.standard_normal((d_out, d_in)) for _ in range(sites)]
    basis = np.linalg.qr(rng.standard_normal((d_in, r)))[0].T

    def walk(method):
        adapter = {A: np.float32(basis), B: np.zeros((d_out, r), np.float32)}
        adapter[HEAD] = np.zeros((2, 2), np.float32)
        for number in range(1, 6):
            trained = []
            for target in targets:
                b = adapter[B].astype(np.float64)
                for _ in range(steps):  # SGD on ½‖BA - target‖², clipped as DP-SGD clips
                    gradient = (b @ adapter[A] - target) @ adapter[A].T
                    b -= 0.3 * gradient / max(1, np.linalg.norm(gradient))
                trained.append({**adapter, B: np.float32(b)})
            adapter = after_round(method, adapter, trained, [1] * sites, number)
            assert np.linalg.matrix_rank(np.vstack([basis, adapter[A]]), tol=1e-4) == r
        return adapter[B] @ adapter[A]

    np.testing.assert_allclose(walk("fedsvd"), walk("ffa-lora"), atol=1e-5)


@given(seed=SEEDS)
def test_flexlora_is_the_best_of_its_rank_for_the_mean_product(seed):
    before, sites, sizes = drawn(seed)
    r = len(before[A])
    after = after_round("flexlora", before, sites, sizes)
    products = mean([s[B].astype(np.float64) @ s[A] for s in sites], sizes)
    u, singular, vt = np.linalg.svd(products, full_matrices=False)
    close(after[B] @ after[A], (u[:, :r] * singular[:r]) @ vt[:r])
    close(after[A] @ after[A].T, np.eye(r))
    close(after[HEAD], mean([s[HEAD] for s in sites], sizes))


@given(seed=SEEDS)
def test_flexlora_loses_nothing_where_sites_agree_on_the_space(seed):
    before, sites, sizes = drawn(seed)
    same = [{**site, A: sites[0][A]} for site in sites]
    after = after_round("flexlora", before, same, sizes)
    close(after[B] @ after[A], mean([s[B] @ s[A] for s in same], sizes))


@pytest.mark.parametrize("method", ["fedsvd", "flexlora"])
@pytest.mark.parametrize("shape", [{"d_out": 2}, {"d_in": 2}, {"d_in": 2, "d_out": 2}])
def test_a_layer_smaller_than_the_rank_is_no_exception(method, shape):
    before, sites, sizes = drawn(0, **shape)
    if method == "fedsvd":
        sites = [{**site, A: before[A]} for site in sites]
    after = after_round(method, before, sites, sizes)
    close(after[B] @ after[A], mean([s[B] @ s[A] for s in sites], sizes))


@each_method
@pytest.mark.parametrize("number", [1, 2])
def test_the_same_updates_in_the_same_order_give_the_same_bits(method, number):
    before, sites, sizes = drawn(7, r=8, d_in=96, d_out=64, sites=6)
    first, again = (after_round(method, before, sites, sizes, number) for _ in range(2))
    assert Weights.from_tensors(first).digest == Weights.from_tensors(again).digest


@each_method
def test_what_a_round_does_not_train_is_as_it_was_unless_the_method_moves_it(method):
    study = study_among("A", aggregation={"method": method})
    before = lora_weights(0.5)
    trained = aggregation.trained_manifest(study, before.manifest, 1)
    total = aggregation.Round(study, Standing(before), 1)
    total.add(Weights(trained, np.ones(trained.size, dtype=np.float32)), 3)
    after = total.result()
    assert after.state is None
    names = after.adapter.manifest.names
    kept = after.adapter.manifest.select(n for n in names if ".residual_" not in n)
    assert kept == before.manifest
    bias = after.adapter.tensors()["base_model.model.classifier.bias"]
    np.testing.assert_allclose(bias, 1.5)
