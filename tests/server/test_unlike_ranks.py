"""Methods that take all sites' factors, each against its algorithm on whole matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.adapter import Weights
from fedpact.server import aggregation
from fedpact.server.aggregation import Standing
from fedpact.server.diagnostics import Examination
from support.round_fakes import study_among

A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "head.weight"
RES_A, RES_B = "layer.residual_A.weight", "layer.residual_B.weight"
D_OUT, D_IN, RANK = 6, 8, 4
SEEDS = st.integers(0, 2**32 - 1)
RANKS = st.lists(st.integers(1, RANK), min_size=1, max_size=5)


def some(rng, rank=RANK) -> dict:
    shapes = {A: (rank, D_IN), B: (D_OUT, rank), HEAD: (2, 3)}
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def some_round(seed: int, ranks):
    """An adapter, what sites of these ranks came to have, and their sizes."""
    rng = np.random.default_rng(seed)
    return some(rng), [some(rng, rank) for rank in ranks], rng.integers(1, 1000, len(ranks))


def after_round(method: str, before: dict, sites, sizes) -> dict:
    """The adapter after a round in which sites, sent as much as they hold, came to have `sites`."""
    study = study_among("A", aggregation={"method": method})
    adapter = Weights.from_tensors(before)
    total = aggregation.Round(study, Standing(adapter), 1)
    for site, size in zip(sites, sizes, strict=True):
        sent = adapter.of_rank(len(site[A])).tensors()
        total.add(Weights.from_tensors({n: site[n] - sent[n] for n in (A, B, HEAD)}), int(size))
    return total.result().adapter.tensors()


def product(tensors: dict, b=B, a=A) -> np.ndarray:
    return tensors[b].astype(np.float64) @ tensors[a]


def whole(tensors: dict) -> np.ndarray:
    """All that a layer has beyond the base model's weight."""
    return product(tensors) + (product(tensors, RES_B, RES_A) if RES_B in tensors else 0)


def mean(matrices, weights):
    return np.average(np.array(matrices, dtype=np.float64), axis=0, weights=weights)


def close(found, wanted):
    """Within 1e-6 of the greatest of what is expected."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(1, np.abs(wanted).max()))


def in_other_basis(site: dict, rng) -> dict:
    """The same product of other factors."""
    rank = len(site[A])
    change = np.linalg.qr(rng.standard_normal((rank, rank)))[0] * rng.uniform(0.5, 2)
    changed = {A: np.linalg.inv(change) @ site[A], B: site[B] @ change}
    return {**site, **{n: value.astype(np.float32) for n, value in changed.items()}}


@given(seed=SEEDS, sites=st.integers(1, 5), rounds=st.integers(1, 3))
def test_fedex_is_the_mean_of_what_sites_have_round_after_round(seed, sites, rounds):
    rng = np.random.default_rng(seed)
    standing, frozen = some(rng), np.zeros((D_OUT, D_IN))
    for _ in range(rounds):
        have, sizes = [some(rng) for _ in range(sites)], rng.integers(1, 1000, sites)
        standing = after_round("fedex-lora", standing, have, sizes)
        averaged = {n: mean([site[n] for site in have], sizes) for n in (A, B, HEAD)}
        # The paper's algorithm, on whole matrices.
        frozen += mean([product(site) for site in have], sizes) - averaged[B] @ averaged[A]
        for name, wanted in averaged.items():
            close(standing[name], wanted)
        close(product(standing, RES_B, RES_A), frozen)
    assert len(standing[RES_A]) <= min(max(1, rounds * (sites - 1) * RANK), D_OUT, D_IN)


@given(seed=SEEDS, ranks=RANKS, rounds=st.integers(1, 3))
def test_flora_adds_the_mean_product_of_unlike_ranks_and_starts_anew(seed, ranks, rounds):
    rng = np.random.default_rng(seed)
    standing, frozen = some(rng), np.zeros((D_OUT, D_IN))
    for _ in range(rounds):
        have, sizes = [some(rng, rank) for rank in ranks], rng.integers(1, 1000, len(ranks))
        before, standing = standing, after_round("flora", standing, have, sizes)
        frozen += mean([product(site) for site in have], sizes)
        close(whole(standing), frozen)
        np.testing.assert_array_equal(standing[B], 0)
        assert np.abs(standing[A]).max() <= D_IN**-0.5
        assert not np.isclose(standing[A], before[A]).any(axis=1).all()
        close(standing[HEAD], mean([site[HEAD] for site in have], sizes))
    assert len(standing[RES_A]) <= min(rounds * sum(ranks), D_OUT, D_IN)


@given(seed=SEEDS, ranks=RANKS)
def test_flexlora_is_the_best_of_the_highest_rank_and_each_site_has_the_best_of_its_own(
    seed, ranks
):
    before, have, sizes = some_round(seed, ranks)
    after = after_round("flexlora", before, have, sizes)
    wanted = mean([product(site) for site in have], sizes)
    singular = np.linalg.svd(wanted, compute_uv=False)
    adapter = Weights.from_tensors(after)
    study = study_among("A", adapter={"r": RANK}, aggregation={"method": "flexlora"})
    for rank in range(1, RANK + 1):
        one = study.institutions[0].model_copy(update={"r": rank})
        sent = aggregation.sent(study.with_institutions((one,)), adapter, ["A"])["A"].tensors()
        assert (len(sent[A]), sent[B].shape[1]) == (rank, rank)
        # Nothing of its rank comes nearer (which of two that come as near, rounding may decide).
        nearest = np.sqrt(np.sum(singular[rank:] ** 2))
        distance = np.linalg.norm(product(sent) - wanted)
        assert distance == pytest.approx(nearest, abs=1e-6 * max(1, singular[0]))
    close(after[HEAD], mean([site[HEAD] for site in have], sizes))


@given(seed=SEEDS, ranks=RANKS)
def test_hetlora_pads_and_weighs_by_the_norm_of_the_product(seed, ranks):
    before, have, sizes = some_round(seed, ranks)
    after = after_round("hetlora", before, have, sizes)
    norms = [np.linalg.norm(product(site)) for site in have]
    rows = [np.pad(site[A], ((0, RANK - len(site[A])), (0, 0))) for site in have]
    columns = [np.pad(site[B], ((0, 0), (0, RANK - len(site[A])))) for site in have]
    close(after[A], mean(rows, norms))
    close(after[B], mean(columns, norms))
    close(after[HEAD], mean([site[HEAD] for site in have], sizes))


def test_hetlora_gives_a_site_one_weight_for_all_its_layers():
    other_a, other_b = "other.lora_A.weight", "other.lora_B.weight"
    site = {A: [[3.0]], B: [[1.0]], other_a: [[4.0]], other_b: [[1.0]]}
    another = {A: [[5.0]], B: [[3.0]], other_a: [[0.0]], other_b: [[2.0]]}
    have = [
        {n: np.array(v, np.float32) for n, v in tensors.items()} for tensors in (site, another)
    ]
    adapter = Weights.from_tensors({n: np.zeros_like(v) for n, v in have[0].items()})
    study = study_among("A", aggregation={"method": "hetlora"})
    total = aggregation.Round(study, Standing(adapter), 1)
    for tensors in have:
        total.add(Weights.from_tensors(tensors), 1)
    # Norms over both layers: 5 (of products 3 and 4) and 15 (of 15 and 0).
    after = total.result().adapter.tensors()
    assert {n: round(v.item(), 6) for n, v in after.items()} == {
        A: 4.5, B: 2.5, other_a: 1.0, other_b: 1.75,
    }  # fmt: skip


def test_hetlora_takes_the_declared_sizes_where_no_product_holds_anything():
    before, have, sizes = some_round(0, (4, 2))
    for site in have:
        site[B][:] = 0
    rows = [np.pad(site[A], ((0, RANK - len(site[A])), (0, 0))) for site in have]
    close(after_round("hetlora", before, have, sizes)[A], mean(rows, sizes))


@pytest.mark.parametrize("method", ["fedex-lora", "flora", "flexlora"])
@given(seed=SEEDS, sites=st.integers(1, 4))
def test_in_which_basis_a_site_has_its_product_does_not_matter(method, seed, sites):
    before, have, sizes = some_round(seed, [RANK] * sites)
    rng = np.random.default_rng(seed)
    others = [in_other_basis(site, rng) for site in have]
    found, again = (after_round(method, before, s, sizes) for s in (have, others))
    scale = max(1, *(np.abs(product(site)).max() for site in have))
    np.testing.assert_allclose(whole(found), whole(again), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("method", ["fedavg", "hetlora"])
def test_in_which_basis_it_is_does_matter_where_factors_are_averaged_apart(method):
    before, have, sizes = some_round(1, [RANK] * 3)
    rng = np.random.default_rng(1)
    others = [in_other_basis(site, rng) for site in have]
    found, again = (after_round(method, before, s, sizes) for s in (have, others))
    assert np.abs(whole(found) - whole(again)).max() > 0.1


@pytest.mark.parametrize("method", ["fedex-lora", "flora"])
def test_however_many_rounds_the_residual_is_no_larger_than_its_layer(method):
    rng = np.random.default_rng(0)
    standing = some(rng)
    for _ in range(12):
        standing = after_round(method, standing, [some(rng) for _ in range(3)], [1, 2, 3])
    assert standing[RES_B].shape == (D_OUT, min(D_OUT, D_IN))
    assert standing[RES_A].shape == (min(D_OUT, D_IN), D_IN)


@given(seed=SEEDS, ranks=RANKS)
def test_updates_of_unlike_ranks_are_compared_padded(seed, ranks):
    before, have, sizes = some_round(seed, ranks)
    adapter = Weights.from_tensors(before)
    examination = Examination(adapter, adapter.manifest)
    flat = []
    for site, size in zip(have, sizes, strict=True):
        rank = len(site[A])
        sent = adapter.of_rank(rank).tensors()
        change = {n: site[n] - sent[n] for n in (A, B, HEAD)}
        examination.add(Weights.from_tensors(change), int(size))
        rest = RANK - rank
        padded = {A: ((0, rest), (0, 0)), B: ((0, 0), (0, rest)), HEAD: ((0, 0), (0, 0))}
        values = np.concatenate([np.pad(change[n], padded[n]).ravel() for n in change])
        flat.append(values / np.linalg.norm(values))
    found = examination.result()
    cosines = [x @ y for n, x in enumerate(flat) for y in flat[n + 1 :]]
    assert (found.mean_cosine is None) == (not cosines)
    if cosines:
        assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-5)
    products = mean([product(site) for site in have], sizes)
    rows = [np.pad(site[A], ((0, RANK - len(site[A])), (0, 0))) for site in have]
    columns = [np.pad(site[B], ((0, 0), (0, RANK - len(site[A])))) for site in have]
    lost = np.linalg.norm(products - mean(columns, sizes) @ mean(rows, sizes))
    assert found.averaging_loss == pytest.approx(lost / np.linalg.norm(products), abs=1e-5)
