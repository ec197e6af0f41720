"""What a round's updates were like, against the same written with whole matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.adapter import Weights
from fedpact.server.diagnostics import MOST_SITES, Diagnosis, Examination

SEEDS = st.integers(0, 2**32 - 1)
LAYERS = ("x", "y")


def some_adapter(rng) -> Weights:
    tensors = {"head.bias": rng.standard_normal(3)}
    for layer in LAYERS:
        tensors[f"{layer}.lora_A.weight"] = rng.standard_normal((2, 6))
        tensors[f"{layer}.lora_B.weight"] = rng.standard_normal((5, 2))
    return Weights.from_tensors(tensors)


def examined(before, changes, sizes=None) -> Diagnosis:
    examination = Examination(before, changes[0].manifest)
    for change, size in zip(changes, sizes or [1] * len(changes), strict=True):
        examination.add(change, size)
    return examination.result()


@given(seed=SEEDS, sites=st.integers(1, 6))
def test_what_averaging_loses(seed, sites):
    rng = np.random.default_rng(seed)
    before, changes = some_adapter(rng), [some_adapter(rng) for _ in range(sites)]
    sizes = list(rng.integers(1, 100, sites))
    lost, whole = [], []
    trained = [before.plus(change).tensors() for change in changes]
    for layer in LAYERS:
        bs = [site[f"{layer}.lora_B.weight"].astype(float) for site in trained]
        of_as = [site[f"{layer}.lora_A.weight"].astype(float) for site in trained]
        products = [b @ a for b, a in zip(bs, of_as, strict=True)]
        mean = np.average(products, axis=0, weights=sizes)
        averaged = np.average(bs, axis=0, weights=sizes) @ np.average(
            of_as, axis=0, weights=sizes
        )
        lost.append(mean - averaged)
        whole.append(mean)
    plain = np.linalg.norm(lost) / np.linalg.norm(whole)
    assert examined(before, changes, sizes).averaging_loss == pytest.approx(plain, abs=1e-6)


@given(seed=SEEDS, sites=st.integers(2, 6))
def test_the_mean_cosine_between_two_sites(seed, sites):
    rng = np.random.default_rng(seed)
    before, changes = some_adapter(rng), [some_adapter(rng) for _ in range(sites)]
    cosines = [
        x.flat @ y.flat / (x.norm * y.norm)
        for n, x in enumerate(changes)
        for y in changes[n + 1 :]
    ]
    found = examined(before, changes).mean_cosine
    assert found == pytest.approx(np.mean(cosines), abs=1e-5)


@pytest.mark.parametrize("shared", ["lora_A", "lora_B"])
def test_nothing_is_lost_where_one_factor_is_shared(shared):
    rng = np.random.default_rng(0)
    before = some_adapter(rng)
    kept = [name for name in before.manifest.names if shared not in name]
    changes = [some_adapter(rng).select(kept) for _ in range(3)]
    assert examined(before, changes).averaging_loss == 0.0


def test_sites_that_send_the_same_lose_nothing_and_go_one_way():
    rng = np.random.default_rng(0)
    before, change = some_adapter(rng), some_adapter(rng)
    found = examined(before, [change] * 3)
    assert found.averaging_loss == pytest.approx(0.0, abs=1e-7)
    assert found.mean_cosine == pytest.approx(1.0)
    against = Weights(change.manifest, -change.flat)
    assert examined(before, [change, against]).mean_cosine == pytest.approx(-1.0)


def test_what_cannot_be_known_is_not_said():
    rng = np.random.default_rng(0)
    before, change = some_adapter(rng), some_adapter(rng)
    zero = Weights(before.manifest, np.zeros_like(before.flat))
    assert Examination(before, before.manifest).result() == Diagnosis(None, None)
    assert examined(before, [change]).mean_cosine is None
    assert examined(before, [change, zero]).mean_cosine is None
    assert examined(zero, [zero, zero]) == Diagnosis(0.0, None)
    many = examined(before, [change] * (MOST_SITES + 1))
    assert many.averaging_loss is None
    assert many.mean_cosine == pytest.approx(1.0)
