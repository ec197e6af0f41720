"""The coordinator's optimiser against FedOpt's equations, over rounds and over a restart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.adapter import Weights
from fedpact.server import aggregation
from fedpact.server.aggregation import Standing
from support.round_fakes import lora_weights, study_among

BETA1, BETA2, TAU, RATE = 0.8, 0.95, 1e-2, 0.3
RATES = {
    "server_momentum": BETA1,
    "server_beta2": BETA2,
    "server_tau": TAU,
    "server_learning_rate": RATE,
}
A, B, HEAD = lora_weights().manifest.names
each_optimizer = pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi"])


def rounds(optimizer, changes, start, *, method="fedavg", first=1) -> Standing:
    """What a run comes to when each round's sites send these changes."""
    chosen = {"method": method, "server_optimizer": optimizer, **RATES}
    study = study_among("A", aggregation=chosen)
    for number, sent in enumerate(changes, start=first):
        total = aggregation.Round(study, start, number)
        trained = aggregation.trained_manifest(study, start.adapter.manifest, number)
        for change in sent:
            total.add(change.select(trained.names), 1)
        start = total.result()
    return start


def drawn(seed, count, sites=2):
    rng = np.random.default_rng(seed)
    manifest = lora_weights().manifest
    return [
        [
            Weights(manifest, rng.standard_normal(manifest.size).astype(np.float32))
            for _ in range(sites)
        ]
        for _ in range(count)
    ]


def plainly(optimizer, changes):
    """FedOpt's algorithm 2 and FedAvgM, on flat arrays."""
    x = np.full(lora_weights().manifest.size, 0.5)
    m, v = np.zeros_like(x), np.full_like(x, TAU**2)
    for sent in changes:
        delta = np.mean([change.flat for change in sent], axis=0, dtype=np.float64)
        if optimizer == "momentum":
            m = BETA1 * m + delta
            x = x + RATE * m
            continue
        m = BETA1 * m + (1 - BETA1) * delta
        if optimizer == "adam":
            v = BETA2 * v + (1 - BETA2) * delta**2
        else:
            v = v - (1 - BETA2) * delta**2 * np.sign(v - delta**2)
        x = x + RATE * m / (np.sqrt(v) + TAU)
    return x


@each_optimizer
@given(seed=st.integers(0, 2**32 - 1))
def test_it_steps_as_the_paper_says(optimizer, seed):
    changes = drawn(seed, 4)
    found = rounds(optimizer, changes, Standing(lora_weights(0.5)))
    np.testing.assert_allclose(
        found.adapter.flat, plainly(optimizer, changes), rtol=1e-5, atol=1e-5
    )


@each_optimizer
def test_a_run_that_is_taken_up_from_what_was_stored_goes_on_to_the_bit(optimizer, tmp_path):
    changes = drawn(0, 5)
    whole = rounds(optimizer, changes, Standing(lora_weights(0.5)))
    half = rounds(optimizer, changes[:2], Standing(lora_weights(0.5)))
    half.adapter.save(tmp_path / "adapter.safetensors")
    half.state.save(tmp_path / "state.safetensors")
    stored = Standing(
        Weights.load(tmp_path / "adapter.safetensors"),
        Weights.load(tmp_path / "state.safetensors"),
    )
    again = rounds(optimizer, changes[2:], stored, first=3)
    assert again.adapter.digest == whole.adapter.digest
    assert again.state.digest == whole.state.digest
    forgotten = rounds(optimizer, changes[2:], Standing(half.adapter), first=3)
    assert forgotten.adapter.digest != whole.adapter.digest


@each_optimizer
def test_a_tensor_that_a_round_does_not_train_keeps_its_state(optimizer):
    changes = drawn(1, 3)
    first, second = (
        rounds(optimizer, changes[:n], Standing(lora_weights(0.5)), method="rolora")
        for n in (1, 2)
    )
    once, twice = first.state.tensors(), second.state.tensors()
    assert f"m:{A}" not in once
    np.testing.assert_array_equal(once[f"m:{B}"], twice[f"m:{B}"])
    assert np.abs(once[f"m:{HEAD}"] - twice[f"m:{HEAD}"]).max() > 0
    np.testing.assert_array_equal(first.adapter.tensors()[B], second.adapter.tensors()[B])


def test_it_steps_on_what_a_robust_rule_gives():
    chosen = {"server_optimizer": "momentum", "robust": "median"}
    study = study_among(*"ABC", aggregation=chosen, federation={"quorum": 3})
    total = aggregation.Round(study, Standing(lora_weights()), 1)
    trained = aggregation.trained_manifest(study, lora_weights().manifest, 1)
    for value in (1.0, 2.0, 1e6):
        total.add(Weights(trained, np.full(trained.size, value, dtype=np.float32)), 1)
    after = total.result()
    np.testing.assert_array_equal(after.adapter.select(trained.names).flat, 2.0)
    np.testing.assert_array_equal(after.state.flat, 2.0)
