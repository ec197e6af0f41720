"""Every record goes to one site, no site is empty, and the skew is the one asked for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.simulations.partition import (
    Column,
    Dirichlet,
    Iid,
    Quantity,
    parse_partition,
    partition,
)

ALPHAS = st.floats(min_value=0.001, max_value=1e6)
SPECS = st.one_of(st.just(Iid()), st.builds(Dirichlet, ALPHAS), st.builds(Quantity, ALPHAS))


@st.composite
def cases(draw):
    labels = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=120))
    return labels, draw(st.integers(min_value=1, max_value=len(labels)))


def deal(spec, labels, sites, seed=0, columns=None):
    return partition(spec, labels=labels, columns=columns or {}, sites=sites, seed=seed)


def records(shards):
    return [(shard.name, shard.indices.tolist()) for shard in shards]


@given(spec=SPECS, case=cases(), seed=st.integers(min_value=0, max_value=2**32))
def test_every_record_goes_to_exactly_one_site_and_no_site_is_empty(spec, case, seed):
    labels, sites = case
    shards = deal(spec, labels, sites, seed)
    assert len(shards) == sites
    assert all(len(shard.indices) >= 1 for shard in shards)
    assert all(shard.indices.dtype == np.int64 for shard in shards)
    dealt = np.concatenate([shard.indices for shard in shards])
    assert sorted(dealt.tolist()) == list(range(len(labels)))


@given(spec=SPECS, case=cases(), seed=st.integers(min_value=0, max_value=2**32))
def test_the_same_seed_gives_the_same_sites(spec, case, seed):
    labels, sites = case
    assert records(deal(spec, labels, sites, seed)) == records(deal(spec, labels, sites, seed))


@pytest.mark.parametrize("spec", [Iid(), Dirichlet(1.0), Quantity(1.0)])
def test_another_seed_gives_other_sites(spec):
    labels = ["a", "b"] * 100
    assert records(deal(spec, labels, 5, 0)) != records(deal(spec, labels, 5, 1))


@given(values=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=60))
def test_a_column_makes_one_site_for_each_of_its_values(values):
    shards = deal(Column("site"), ["x"] * len(values), None, columns={"site": values})
    assert [shard.name for shard in shards] == sorted(set(values))
    for shard in shards:
        expected = [where for where, value in enumerate(values) if value == shard.name]
        assert shard.indices.dtype == np.int64
        assert shard.indices.tolist() == expected


def label_skew(shards, labels):
    """How far the sites' label shares lie from the whole's, weighted by size: 0 is iid."""
    whole = Counter(labels)
    far = 0.0
    for shard in shards:
        here = Counter(labels[index] for index in shard.indices)
        far += sum(
            abs(here[label] - len(shard.indices) * whole[label] / len(labels))
            for label in whole
        )
    return far / (2 * len(labels))


def average_skew(spec, labels, sites):
    return np.mean([label_skew(deal(spec, labels, sites, seed), labels) for seed in range(20)])


def test_dirichlet_skews_labels_the_more_the_smaller_alpha_is():
    labels = ["yes"] * 700 + ["no"] * 1300
    skews = [average_skew(Dirichlet(alpha), labels, 8) for alpha in (0.05, 0.3, 1.0, 10.0, 1e4)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.3
    assert skews[-1] < 0.01


def test_dirichlet_gives_each_site_its_share_on_average():
    labels = ["yes"] * 300 + ["no"] * 300
    sizes = np.mean(
        [
            [len(s.indices) for s in deal(Dirichlet(0.5), labels, 4, seed)]
            for seed in range(300)
        ],
        axis=0,
    )
    assert sizes == pytest.approx([150] * 4, rel=0.15)


def test_quantity_skews_sizes_but_not_labels():
    labels = ["yes"] * 1000 + ["no"] * 3000
    for seed in range(10):
        shards = deal(Quantity(0.5), labels, 6, seed)
        sizes = sorted(len(shard.indices) for shard in shards)
        assert sizes[-1] > 2 * sizes[0]
        for shard in shards:
            if len(shard.indices) >= 200:
                yes = sum(labels[index] == "yes" for index in shard.indices)
                assert yes / len(shard.indices) == pytest.approx(0.25, abs=0.12)
    assert average_skew(Quantity(0.5), labels, 6) < 0.03


def test_quantity_makes_sizes_the_more_unequal_the_smaller_alpha_is():
    labels = ["x"] * 3000

    def spread(alpha):
        return np.mean(
            [
                np.std([len(s.indices) for s in deal(Quantity(alpha), labels, 6, seed)])
                for seed in range(20)
            ]
        )

    spreads = [spread(alpha) for alpha in (0.05, 0.5, 5.0, 1e5)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 5


def test_iid_makes_equal_sizes_with_the_same_labels():
    labels = ["yes"] * 1000 + ["no"] * 1003
    shards = deal(Iid(), labels, 4)
    assert sorted(len(shard.indices) for shard in shards) == [500, 501, 501, 501]
    assert label_skew(shards, labels) < 0.06


def test_sites_are_numbered_from_one_and_sort_by_name():
    assert [s.name for s in deal(Iid(), ["x"] * 9, 3)] == ["site-01", "site-02", "site-03"]
    names = [s.name for s in deal(Iid(), ["x"] * 1000, 1000)]
    assert names[0] == "site-0001"
    assert names[-1] == "site-1000"
    assert names == sorted(names)


def test_a_thousand_sites_with_few_records_each_all_get_one():
    labels = ["yes", "no"] * 600
    for spec in (Dirichlet(0.01), Quantity(0.01)):
        assert min(len(s.indices) for s in deal(spec, labels, 1000)) >= 1


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("iid", Iid()),
        ("dirichlet:0.3", Dirichlet(0.3)),
        ("quantity:0.5", Quantity(0.5)),
        ("column:site", Column("site")),
        ("column:a:b", Column("a:b")),
        (" dirichlet:1 ", Dirichlet(1.0)),
    ],
)
def test_the_command_lines_spelling_is_read(text, spec):
    assert parse_partition(text) == spec


@given(spec=st.one_of(SPECS, st.builds(Column, st.from_regex(r"[a-z:_]{1,9}", fullmatch=True))))
def test_what_is_printed_can_be_read_again(spec):
    assert parse_partition(str(spec)) == spec


@pytest.mark.parametrize("text", ["", "random", "iid:3", "Dirichlet:0.3", "column", "column:"])
def test_an_unknown_partition_is_refused_with_the_known_ones(text):
    with pytest.raises(ValueError) as refused:
        parse_partition(text)
    for known in ("iid", "dirichlet:", "quantity:", "column:"):
        assert known in str(refused.value)


@pytest.mark.parametrize("text", ["dirichlet", "dirichlet:", "quantity:much"])
def test_a_missing_or_odd_number_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"(dirichlet|quantity):0\.3"):
        parse_partition(text)


@pytest.mark.parametrize("alpha", ["0", "-1", "nan", "inf", "1e-9"])
@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
def test_an_alpha_out_of_range_is_refused(kind, alpha):
    with pytest.raises(ValueError, match=f"alpha of {kind}"):
        parse_partition(f"{kind}:{alpha}")


@pytest.mark.parametrize("sites", [0, -1, 4])
@pytest.mark.parametrize("spec", [Iid(), Dirichlet(1.0), Quantity(1.0)])
def test_more_sites_than_records_or_none_at_all_are_refused(spec, sites):
    with pytest.raises(ValueError, match=f"3 records cannot be dealt out to {sites} sites"):
        deal(spec, ["a", "b", "a"], sites)


def test_a_partition_other_than_column_needs_the_number_of_sites():
    with pytest.raises(ValueError, match=r"dirichlet:0\.3 needs the number of sites"):
        deal(Dirichlet(0.3), ["a", "b"], None)


def test_a_columns_number_of_sites_is_its_number_of_values():
    columns = {"site": ["north", "south", "north"]}
    assert len(deal(Column("site"), ["x"] * 3, 2, columns=columns)) == 2
    with pytest.raises(
        ValueError, match="has 2 different values and makes as many sites, not 3"
    ):
        deal(Column("site"), ["x"] * 3, 3, columns=columns)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"town": ["a", "b"], "year": ["1", "2"]}, "no column 'site'.*town, year"),
        ({}, "no column 'site'.*none"),
        ({"site": ["a"]}, "has 1 values for 2 records"),
        ({"site": ["a", ""]}, "is empty in some records"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        deal(Column("site"), ["x", "x"], None, columns=columns)
