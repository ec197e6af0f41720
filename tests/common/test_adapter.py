"""Adapter weights: what is laid end to end comes apart again, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from fedpact.common.adapter import Manifest, Weights
from fedpact.common.errors import WireError

TENSORS = st.dictionaries(
    st.text("abc._0", min_size=1, max_size=8),
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements=st.floats(width=32),
    ),
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(tensors=TENSORS)
def test_tensors_come_back(tensors):
    weights = Weights.from_tensors(tensors)
    back = weights.tensors()
    assert list(back) == list(tensors)
    for name, value in tensors.items():
        assert back[name].shape == value.shape
        np.testing.assert_array_equal(back[name], value)
    again = Weights.from_bytes(weights.manifest, weights.to_bytes())
    assert again.to_bytes() == weights.to_bytes()
    assert again.digest == weights.digest
    assert weights.manifest.size == sum(value.size for value in tensors.values())


@settings(max_examples=25, deadline=None)
@given(tensors=TENSORS)
def test_a_safetensors_file_comes_back(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    weights = Weights.from_tensors(tensors)
    weights.save(path)
    back = Weights.load(path)
    assert back.manifest == weights.manifest
    assert back.digest == weights.digest


def test_a_file_that_does_not_say_its_order_is_read_in_the_order_of_names(tmp_path):
    path = tmp_path / "peft.safetensors"
    save_file({"b": np.ones(2, np.float32), "a": np.zeros(1, np.float32)}, path)
    assert Weights.load(path).manifest.names == ("a", "b")


@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 40])
def test_a_file_without_weights_is_named(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(WireError, match=r"bad\.safetensors"):
        Weights.load(path)


def some() -> Weights:
    return Weights.from_tensors({"a": np.ones((2, 3)), "b": np.arange(4.0), "c": np.float32(5)})


def test_bytes_of_another_length_are_refused():
    weights = some()
    data = weights.to_bytes()
    for other in (data[:-1], data[:-4], data + b"\0", data + b"\0" * 4, b""):
        with pytest.raises(WireError, match="bytes"):
            Weights.from_bytes(weights.manifest, other)


@pytest.mark.parametrize(
    "flat", [np.zeros(11), np.zeros(10, np.float32), np.zeros((11, 1), np.float32)]
)
def test_values_that_are_not_the_manifests_are_refused(flat):
    with pytest.raises(WireError, match="manifest says"):
        Weights(some().manifest, flat)


def test_a_change_is_added_where_it_belongs():
    weights = some()
    total = weights.plus(Weights.from_tensors({"b": np.full(4, 10.0)}))
    np.testing.assert_array_equal(total.tensors()["b"], [10, 11, 12, 13])
    np.testing.assert_array_equal(total.tensors()["a"], np.ones((2, 3)))
    np.testing.assert_array_equal(weights.tensors()["b"], np.arange(4))


@pytest.mark.parametrize(
    "change", [{"z": np.ones(1)}, {"b": np.ones(3)}, {"b": np.ones((4, 1))}]
)
def test_a_change_that_does_not_fit_is_refused(change):
    with pytest.raises(WireError, match="does not fit"):
        some().plus(Weights.from_tensors(change))


def test_some_of_the_tensors_are_taken_in_their_own_order():
    chosen = some().select(["c", "a"])
    assert chosen.manifest == Manifest(("a", "c"), ((2, 3), ()))
    assert chosen.flat.tolist() == [1, 1, 1, 1, 1, 1, 5]
    with pytest.raises(WireError, match="no tensor y"):
        some().select(["z", "y"])


def test_finite_and_norm():
    weights = Weights.from_tensors({"a": [3.0, 4.0]})
    assert weights.is_finite()
    assert weights.norm == 5.0
    for bad in (np.nan, np.inf, -np.inf):
        assert not Weights.from_tensors({"a": [0.0, bad]}).is_finite()
    large = Weights.from_tensors({"a": np.full(4, 1e30, np.float32)})
    assert large.norm == pytest.approx(2e30)  # squares do not overflow


def test_names_and_shapes_are_part_of_what_an_adapter_is():
    values = np.arange(6.0)
    digests = {
        Weights.from_tensors({"a": values}).digest,
        Weights.from_tensors({"b": values}).digest,
        Weights.from_tensors({"a": values.reshape(2, 3)}).digest,
        Weights.from_tensors({"a": values + 1}).digest,
    }
    assert len(digests) == 4


def test_a_made_up_shape_does_not_overflow_into_a_small_one():
    assert Manifest(("a",), ((2**32, 2**32),)).size == 2**64
    with pytest.raises(WireError):
        Weights.from_bytes(Manifest(("a",), ((2**32, 2**32),)), b"")
