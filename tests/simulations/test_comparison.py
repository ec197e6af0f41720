"""The grid of a comparison, in the words of the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.common.errors import StudyError, UsageError
from fedpact.simulations.comparison import changed, grid, variants


def test_an_axis_has_one_variant_for_each_value():
    found = variants(["aggregation.method=ffa-lora, fedavg"])
    assert [v.name for v in found] == ["ffa-lora", "fedavg"]
    assert [dict(v.changes) for v in found] == [
        {"aggregation.method": "ffa-lora"},
        {"aggregation.method": "fedavg"},
    ]


def test_values_are_those_of_toml_and_a_bare_word_is_text():
    keys = "adapter.r=4,8", "training.dropout=true", 'study.name="a, b:c"'
    keys = (*keys, 'adapter.target_modules=["query"],["query", "value"]')
    found = grid(keys)
    assert len(found) == 4
    assert found[0] == {
        "adapter.r": 4,
        "training.dropout": True,
        "study.name": "a, b:c",
        "adapter.target_modules": ["query"],
    }
    assert found[3]["adapter.target_modules"] == ["query", "value"]


def test_keys_can_change_together():
    found = variants(["aggregation.method:training.learning_rate=fedavg:0.1,ffa-lora:1e-2"])
    assert [dict(v.changes) for v in found] == [
        {"aggregation.method": "fedavg", "training.learning_rate": 0.1},
        {"aggregation.method": "ffa-lora", "training.learning_rate": 0.01},
    ]
    assert found[0].name == "fedavg, learning_rate=0.1"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_several_axes_make_the_full_grid(sizes):
    axes = [
        f"training.key_{n}={','.join(map(str, range(size)))}" for n, size in enumerate(sizes)
    ]
    found = variants(axes)
    total = 1
    for size in sizes:
        total *= size
    assert len({v.name for v in found}) == len(found) == total
    assert len({tuple(v.changes.items()) for v in found}) == total


def test_variants_whose_words_would_be_the_same_are_told_apart():
    found = variants(["training.optimizer:aggregation.server_optimizer=adamw:x,x:adamw"])
    assert len({v.name for v in found}) == 2
    found = variants(["study.use=a,b", "study.purpose=a,b"])
    assert len({v.name for v in found}) == 4


@pytest.mark.parametrize(
    ("axes", "why"),
    [
        (["aggregation.method"], "does not say what to compare"),
        (["method=a,b"], "does not say what to compare"),
        (["aggregation.method="], "does not say what to compare"),
        (["aggregation.method:adapter.r=fedavg"], "a value to each"),
        (["aggregation.method=fedavg,"], "a value to each"),
        (["aggregation.method=fedavg,fedavg"], "stands there twice"),
        (["adapter.r=1,2", "adapter.r=3"], "changed twice"),
        (["training.seed=1,2"], "--seeds set it"),
        (["evaluation.data=a.csv,b.csv"], "the same data"),
    ],
)
def test_what_cannot_be_read_is_said(axes, why):
    with pytest.raises(UsageError, match=why):
        variants(axes)


def test_a_key_that_is_mistyped_is_said_with_the_nearest(tiny):
    document = tiny.document()
    with pytest.raises(StudyError, match="did you mean `method`"):
        changed(document, {"aggregation.methodd": "fedavg"})
    with pytest.raises(StudyError, match="did you mean `aggregation`"):
        changed(document, {"agregation.method": "fedavg"})
    with pytest.raises(StudyError, match="server_optimizer"):
        changed(
            document, {"aggregation.method": "fedsvd", "aggregation.server_optimizer": "adam"}
        )


def test_only_what_is_asked_for_changes(tiny):
    document = tiny.document()
    study = changed(document, {"aggregation.method": "fedavg"})
    assert study.aggregation.method == "fedavg"
    assert "aggregation" not in document
    assert study == tiny.study(aggregation={"method": "fedavg"})
