"""Deals the records of one data set out to many sites.

Every record goes to exactly one site and no site stays empty; where records are of persons, a
person's all go to one. The same arguments give the
same sites. A partition is written on the command line as one of

    iid               equal sizes, records at random
    dirichlet:ALPHA   label skew: the smaller ALPHA, the fewer labels a site sees
    quantity:ALPHA    size skew: the smaller ALPHA, the more unequal the sizes
    column:NAME       one site for each value of the column NAME
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.int64]

# Outside these, a Dirichlet draw is one-hot or uniform anyway, and floating point gives in.
_SMALLEST_ALPHA: Final = 1e-3
_LARGEST_ALPHA: Final = 1e6


@dataclass(frozen=True)
class Iid:
    """Equal sizes, records at random."""

    def __str__(self) -> str:
        return "iid"


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: each label is spread over the sites in Dirichlet-drawn proportions."""

    alpha: float

    def __post_init__(self) -> None:
        _check_alpha("dirichlet", self.alpha)

    def __str__(self) -> str:
        return f"dirichlet:{self.alpha}"


@dataclass(frozen=True)
class Quantity:
    """Size skew: the sites' sizes are Dirichlet-drawn, their records at random."""

    alpha: float

    def __post_init__(self) -> None:
        _check_alpha("quantity", self.alpha)

    def __str__(self) -> str:
        return f"quantity:{self.alpha}"


@dataclass(frozen=True)
class Column:
    """One site for each value of a column."""

    name: str

    def __str__(self) -> str:
        return f"column:{self.name}"


Partition: TypeAlias = Iid | Dirichlet | Quantity | Column


@dataclass(frozen=True, eq=False)
class Shard:
    """One site's part of the data set.

    Attributes:
        name: "site-01" and so on, or the column's value.
        indices: The positions of its records, ascending.
    """

    name: str
    indices: Indices


def parse_partition(text: str) -> Partition:
    """Reads a partition as it is written on the command line.

    Raises:
        ValueError: It is not one of the known partitions, or its value does not fit.
    """
    kind, colon, value = text.strip().partition(":")
    if kind == "iid" and not colon:
        return Iid()
    if kind in _WITH_ALPHA:
        return _WITH_ALPHA[kind](_alpha(kind, value))
    if kind == "column" and value:
        return Column(value)
    raise ValueError(
        f"{text!r} is not a partition. Known are iid, dirichlet:ALPHA (such as dirichlet:0.3), "
        "quantity:ALPHA (such as quantity:0.5) and column:NAME (such as column:site)."
    )


def partition(
    spec: Partition,
    *,
    labels: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    sites: int | None,
    seed: int,
    persons: Sequence[str] | None = None,
) -> list[Shard]:
    """Deals the records out.

    Args:
        spec: How.
        labels: Each record's label; as many as there are records.
        columns: The data set's columns by name, for `Column`.
        sites: To how many sites. With `Column` it may be None: as many as there are values.
        seed: Same seed, same sites.
        persons: Whose each record is, if a person's records may not be parted: persons are
            then dealt out, each with the label and columns of its first record.

    Raises:
        ValueError: The records cannot be dealt out so.
    """
    if persons is not None:
        return _by_person(spec, persons, labels, columns, sites, seed)
    if isinstance(spec, Column):
        return _by_column(spec.name, columns, len(labels), sites)
    if sites is None:
        raise ValueError(f"The partition {spec} needs the number of sites.")
    if not 1 <= sites <= len(labels):
        raise ValueError(
            f"{len(labels)} records cannot be dealt out to {sites} sites: "
            "there must be at least one site, and one record for each."
        )
    rng = np.random.default_rng(seed)
    match spec:
        case Iid():
            parts = np.array_split(rng.permutation(len(labels)), sites)
        case Dirichlet(alpha):
            parts = _label_skew(labels, sites, alpha, rng)
        case Quantity(alpha):
            parts = _quantity_skew(len(labels), sites, alpha, rng)
    width = max(2, len(str(sites)))
    return [
        Shard(f"site-{number:0{width}}", _ascending(part))
        for number, part in enumerate(parts, start=1)
    ]


def _by_person(
    spec: Partition,
    persons: Sequence[str],
    labels: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    sites: int | None,
    seed: int,
) -> list[Shard]:
    """Deals persons out as if each were one record."""
    owned = list(_positions([name.strip() for name in persons]).values())
    if isinstance(spec, Column) and spec.name in columns:
        values = columns[spec.name]
        if any(len({values[i] for i in records}) > 1 for records in owned):
            raise ValueError(f"The column {spec.name!r} puts one person at several sites.")
    first = [int(records[0]) for records in owned]
    shards = partition(
        spec,
        labels=[labels[i] for i in first],
        columns={name: [values[i] for i in first] for name, values in columns.items()},
        sites=sites,
        seed=seed,
    )
    return [
        Shard(shard.name, _ascending(np.concatenate([owned[i] for i in shard.indices])))
        for shard in shards
    ]


def _label_skew(
    labels: Sequence[str], sites: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """Spreads each label's records over the sites in proportions drawn from Dir(alpha).

    The skew of Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification" (2019, arXiv:1909.06335), drawn label
    by label as in Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural
    Networks" (ICML 2019, arXiv:1905.12022), which is what most software and papers do. (Hsu
    et al. draw site by site, with sites of equal size.) A site that was dealt nothing gets
    one record of the largest.
    """
    dealt: list[list[Indices]] = [[] for _ in range(sites)]
    for of_one_label in _positions(labels).values():
        records = rng.permutation(of_one_label)
        shares = rng.dirichlet(np.full(sites, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(records) + 0.5).astype(np.int64)
        for share, part in zip(dealt, np.split(records, cuts), strict=True):
            share.append(part)
    parts = [rng.permutation(np.concatenate(share)) for share in dealt]
    for site in range(sites):
        if len(parts[site]) == 0:
            largest = max(range(sites), key=lambda other: len(parts[other]))
            parts[site], parts[largest] = parts[largest][:1], parts[largest][1:]
    return parts


def _quantity_skew(
    records: int, sites: int, alpha: float, rng: np.random.Generator
) -> list[Indices]:
    """One record for each site, and the rest in proportions drawn from Dir(alpha)."""
    shares = rng.dirichlet(np.full(sites, alpha))
    rest = np.floor(np.cumsum(shares)[:-1] * (records - sites) + 0.5).astype(np.int64)
    return np.split(rng.permutation(records), rest + np.arange(1, sites))


def _by_column(
    name: str, columns: Mapping[str, Sequence[str]], records: int, sites: int | None
) -> list[Shard]:
    if name not in columns:
        known = ", ".join(columns) or "none"
        raise ValueError(f"There is no column {name!r} to partition by. Columns: {known}.")
    values = columns[name]
    if len(values) != records:
        raise ValueError(f"The column {name!r} has {len(values)} values for {records} records.")
    found = _positions(values)
    if not found:
        raise ValueError("There are no records to deal out.")
    if "" in found:
        raise ValueError(f"The column {name!r} is empty in some records: they have no site.")
    if sites is not None and sites != len(found):
        raise ValueError(
            f"The column {name!r} has {len(found)} different values and makes as many sites, "
            f"not {sites}: leave the number of sites out, or ask for {len(found)}."
        )
    return [Shard(value, indices) for value, indices in found.items()]


def _positions(values: Sequence[str]) -> dict[str, Indices]:
    """Where each value occurs; values in order, positions ascending."""
    found: dict[str, list[int]] = {}
    for position, value in enumerate(values):
        found.setdefault(value, []).append(position)
    return {value: np.array(found[value], dtype=np.int64) for value in sorted(found)}


def _ascending(indices: Indices) -> Indices:
    return np.sort(indices).astype(np.int64)


def _check_alpha(kind: str, alpha: float) -> None:
    if not (math.isfinite(alpha) and _SMALLEST_ALPHA <= alpha <= _LARGEST_ALPHA):
        raise ValueError(
            f"The alpha of {kind} must be between {_SMALLEST_ALPHA:g} and "
            f"{_LARGEST_ALPHA:g}, not {alpha:g}."
        )


def _alpha(kind: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{kind} needs a number after a colon, such as {kind}:0.3, not {text!r}."
        ) from None


_WITH_ALPHA: Final[Mapping[str, Callable[[float], Dirichlet | Quantity]]] = {
    "dirichlet": Dirichlet,
    "quantity": Quantity,
}
