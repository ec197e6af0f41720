"""The rows of the accuracy table: data, recipe, variants, and the rules for their figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from _figures import Rule, at_least, best_beyond_spread, best_less, borne, not_below, within
from _site_figures import (
    SiteRule,
    joining_is_worth_it,
    personal_matches_alone,
    shared_beats_alone,
)
from fedpact.simulations.attacks import KINDS as ATTACKS
from fedpact.simulations.comparison import Variant

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """A data set: its folder, how the task reads it, and by which of the task's measures."""

    folder: str
    max_length: int
    task: Section = field(default_factory=dict)
    suffix: str = ".csv.gz"
    measure: str = ""


@dataclass(frozen=True)
class Recipe:
    """How a row is trained.

    Attributes:
        rounds: in each run.
        rate: the share of a site's records in a step, where all are of one size; sites of
            unlike sizes have the same expected batch, at most all that they have.
        training, aggregation, adapter, privacy: keys of these sections of the study.
        every: rounds from one measurement to the next; None: the study's default.
        rates: learning rates that each variant of a tuned row tries.
    """

    rounds: int
    rate: float
    training: Section
    aggregation: Section = field(default_factory=dict)
    adapter: Section = field(default_factory=dict)
    privacy: Section = field(default_factory=dict)
    every: int | None = None
    rates: tuple[float, ...] = ()


# The recipes: one for each kind of row.
TWO: Final[Section] = {"r": 4, "lora_alpha": 4, "layers_to_transform": [4, 5]}
THREE: Final[Section] = {**TWO, "layers_to_transform": [3, 4, 5]}
# One step in each round, and Adam at the coordinator.
PLAIN: Final = Recipe(
    rounds=60,
    rate=0.1,
    training={"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0},
    aggregation={"server_optimizer": "adam", "server_learning_rate": 0.1},
    adapter=TWO,
    every=20,
)
PRIVATE: Final = replace(PLAIN, rounds=50, rate=0.3, adapter=THREE, every=10)
# Methods some of which cannot go with a server optimiser: all do without, and tune alike.
METHODS: Final = Recipe(
    rounds=6,
    rate=0.1,
    training={"local_steps": 8, "optimizer": "adamw"},
    adapter=TWO,
    every=3,
    rates=(0.003, 0.01, 0.03, 0.1),
)
# By SGD: AdamW takes steps of one size, however little of a gradient is not noise.
METHODS_PRIVATE: Final = replace(
    METHODS,
    rate=0.15,
    training={"local_steps": 3, "optimizer": "sgd"},
    every=6,
    rates=(3.0, 10.0),
)
# The same steps, each averaged. Adam's steps are as long whatever the learning rate at the sites,
# which is tuned as the others' are: it says which gradients are small beside `server_tau`.
EACH_STEP: Final[Section] = {
    "aggregation.method": "ffa-lora",
    "aggregation.server_optimizer": "adam",
    "aggregation.server_learning_rate": 0.1,
    "aggregation.server_tau": 3e-5,
    "training.rounds": METHODS.rounds * METHODS.training["local_steps"],
    "training.local_steps": 1,
    "training.optimizer": "sgd",
    "evaluation.every": 24,
}
# Fewer, longer rounds where methods are not what is asked.
LONGER: Final = replace(
    METHODS, training={"local_steps": 8, "optimizer": "adamw", "learning_rate": 0.03}, rates=()
)
RANKS: Final = replace(METHODS, adapter={**TWO, "r": 8, "lora_alpha": 8}, rates=(0.01, 0.03))
# As PLAIN, where sites are many, and each is trained alone too.
NATURAL: Final = replace(PLAIN, rounds=40)
TASKS: Final = replace(
    LONGER,
    adapter=RANKS.adapter,
    rate=0.15,
    rounds=10,
    training={**LONGER.training, "learning_rate": 0.01},
    every=10,
)
ROBUST: Final = replace(
    LONGER,
    rounds=4,
    training={**LONGER.training, "local_steps": 4},
    adapter={**TWO, "layers_to_transform": [5]},
    every=4,
)
# Adapters that stay are trained apart, by an optimiser of the site's own.
APART: Final[Section] = {
    "personalisation.optimizer": "adamw",
    "personalisation.learning_rate": 0.03,
}
START: Final = "start"
# Of many labels or words each has small gradients: beside τ = 0.001 Adam's steps would be small too.
SMALL_GRADIENTS: Final = replace(
    PLAIN,
    adapter=RANKS.adapter,
    aggregation={"server_optimizer": "adam", "server_learning_rate": 0.03, "server_tau": 1e-5},
    every=60,
)
# Few steps at a small ε, with and without a start from public data, and what trains this start.
SHORT: Final = replace(PRIVATE, rounds=20, adapter=TWO, every=5)
ON_PUBLIC: Final = replace(SHORT, rate=0.02, every=None)
# The coordinator's optimiser does not reach what stays, and AdamW at sites learns nothing of noise.
AT_SITES: Final[Section] = {
    "training.rounds": 10,
    "training.local_steps": 4,
    "training.optimizer": "adamw",
    "training.learning_rate": 0.03,
    "aggregation.server_optimizer": "none",
    "aggregation.server_learning_rate": 1.0,
}
DITTO_LAMBDA: Final = 0.1

SST2: Final = Data("sst2", 64)
EMOTION: Final = Data("tweeteval-emotion", 64)
MEDQUAD: Final = Data("medquad-qtype", 64)
REVIEWS: Final = Data("mdsd5", 64)
HALLMARKS: Final = Data(
    "hallmarks-of-cancer", 128, {"name": "multi-label-classification"}, measure="micro_f1"
)
QUESTIONS: Final = Data(
    "xquad-en",
    384,
    {
        "name": "question-answering",
        "text_column": "question",
        "text_pair_column": "context",
        "label_column": "answers",
    },
    ".jsonl.gz",
)
DISEASES: Final = Data(
    "ncbi-disease",
    128,
    {"name": "token-classification", "text_column": "tokens", "label_column": "tags"},
    ".jsonl.gz",
    measure="entity_f1",
)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        data: which.
        recipe: how all variants are trained, but for their own changes.
        variants: what is compared. One with sites of its own has the row's batch in a step all
            the same: with one site it is central.
        rules: what the figures are.
        sites: among how many sites; None: the column's values.
        partition: how the training data are dealt out.
        epsilon: that each site's run costs at most; None: no DP.
        tune: with how many seeds each variant chooses its learning rate first; 0: not at all.
        site_rules: what the figures are where every site is measured, alone too; `rules` is
            empty then, and the first variant's run gives the shared adapter.
        start: public data, and how `START` beside the study is trained on them without DP, for
            variants that begin with it.
    """

    data: Data
    recipe: Recipe
    variants: tuple[Variant, ...]
    rules: tuple[Rule, ...] = ()
    sites: int | None = 3
    partition: str = "iid"
    epsilon: float | None = None
    tune: int = 0
    site_rules: tuple[SiteRule, ...] = ()
    start: tuple[Data, Recipe] | None = None


def _methods(*names: str) -> tuple[Variant, ...]:
    return tuple(Variant(name, {"aggregation.method": name}) for name in names)


_FEDERATED: Final = (Variant("federated"), Variant("central", sites=1, partition="iid"))


# Personal adapters of fine-tune, interpolate and ditto are trained without noise and stay; what
# private-head and fedsa-lora keep is trained by the same noisy steps as what they share.
def _personal(steps: int, *, private: bool) -> tuple[Variant, ...]:
    kept = {} if private else AT_SITES
    fedsa = {"personalisation.method": "fedsa-lora", "aggregation.method": "fedavg"}
    return (
        *(
            Variant(
                method,
                {
                    "personalisation.method": method,
                    "personalisation.steps": steps,
                    **APART,
                },
            )
            for method in ("fine-tune", "interpolate")
        ),
        Variant(
            "ditto",
            {
                "personalisation.method": "ditto",
                "personalisation.ditto_lambda": DITTO_LAMBDA,
                **APART,
            },
        ),
        Variant("private-head", {"personalisation.method": "private-head", **kept}),
        Variant("fedsa-lora", {**fedsa, **kept}),
    )


_PRIVATE_METHODS: Final = ("fedavg", "ffa-lora", "fedsvd", "fedex-lora", "rolora")
_UNLIKE: Final = {
    "institutions": [
        {"name": f"rank {r}", "sector": "academia", "records": 1_000, "r": r} for r in (2, 4, 8)
    ]
}
_MIXED: Final = (
    Variant("fedavg, rank 8", {"aggregation.method": "fedavg"}),
    Variant("flexlora, rank 8", {"aggregation.method": "flexlora"}),
    *(
        Variant(f"{method}, ranks 2, 4, 8", {"aggregation.method": method, **_UNLIKE})
        for method in ("flora", "flexlora", "hetlora")
    ),
)

BAD: Final = 2
NORM_BOUND: Final = 5.0
RULES: Final = (
    "mean",
    "median",
    "geometric-median",
    "multi-krum",
    "norm-bounding",
)
HONEST: Final = "mean, all honest"


def _under_attack() -> Sequence[Variant]:
    bears = {"aggregation.bad_sites": BAD, "federation.quorum": 10}
    rules: dict[str, dict[str, Any]] = {
        rule: {**bears, "aggregation.robust": "none" if rule == "mean" else rule}
        for rule in RULES
    }
    rules["norm-bounding"]["aggregation.norm_bound"] = NORM_BOUND
    return [
        Variant(HONEST, rules["mean"]),
        *(
            Variant(f"{rule}, {attack}", changes, attack=f"{attack}:{BAD}")
            for attack in ATTACKS
            for rule, changes in rules.items()
        ),
    ]


def _natural(data: Data, rate: float, steps: int, epsilon: float | None, spared: int) -> Row:
    """Sites by their column; `steps` of fine-tuning."""
    rules = (personal_matches_alone(spared), shared_beats_alone)
    return Row(
        data,
        replace(NATURAL, rate=rate),
        _personal(steps, private=epsilon is not None),
        sites=None,
        partition="column:site",
        epsilon=epsilon,
        site_rules=rules,
    )


ROWS: Final = {
    "no-dp-federated-vs-central": Row(
        SST2, PLAIN, _FEDERATED, (within("federated", "central", 0.5),)
    ),
    "federated-dp": Row(
        SST2,
        PRIVATE,
        _FEDERATED,
        (at_least("central", 83), within("federated", "central", 1.5)),
        epsilon=8.0,
    ),
    "public-start": Row(
        SST2,
        SHORT,
        (Variant("from zero"), Variant("from public data", {"adapter.start": START})),
        (best_less("from zero"),),
        epsilon=2.0,
        start=(REVIEWS, ON_PUBLIC),
    ),
    "dirichlet-no-dp": Row(
        EMOTION,
        METHODS,
        (
            *_methods(
                "fedavg", "ffa-lora", "fedsvd", "fedex-lora", "rolora", "flexlora", "flora"
            ),
            Variant("ffa-lora, averaged at each step", EACH_STEP),
        ),
        (best_beyond_spread("fedavg"),),
        sites=5,
        partition="dirichlet:0.3",
        tune=3,
    ),
    **{
        f"methods-under-dp-{name}-{epsilon}": Row(
            data,
            METHODS_PRIVATE,
            _methods(*_PRIVATE_METHODS),
            (best_less("fedavg"),),
            sites=6,
            partition="dirichlet:0.5",
            epsilon=float(epsilon),
            tune=1,
        )
        for name, data in (("sst2", SST2), ("emotion", EMOTION))
        for epsilon in (6, 3)
    },
    "alone-vs-shared-sst2": Row(
        SST2,
        LONGER,
        (Variant("shared"),),
        sites=10,
        partition="dirichlet:0.5",
        site_rules=(joining_is_worth_it,),
    ),
    "medquad-no-dp": _natural(MEDQUAD, 0.1, 120, None, 1),
    "medquad-dp": _natural(MEDQUAD, 0.1, 120, 8.0, 1),
    "mdsd5-no-dp": _natural(REVIEWS, 0.05, 40, None, 0),
    "mdsd5-dp": _natural(REVIEWS, 0.05, 40, 8.0, 0),
    **{
        name: Row(data, recipe, _FEDERATED, (within("federated", "central", 1.5),))
        for name, data, recipe in (
            ("hallmarks", HALLMARKS, replace(SMALL_GRADIENTS, rate=0.15)),
            ("xquad", QUESTIONS, TASKS),
            ("ncbi", DISEASES, SMALL_GRADIENTS),
        )
    },
    "mixed-ranks": Row(
        SST2,
        RANKS,
        _MIXED,
        tuple(
            not_below(f"{method}, ranks 2, 4, 8", f"{reference}, rank 8", 1.0)
            for method in ("flora", "flexlora", "hetlora")
            for reference in ("fedavg", "flexlora")
        ),
        tune=1,
    ),
    "bad-sites": Row(
        SST2,
        ROBUST,
        tuple(_under_attack()),
        (borne(RULES, ATTACKS, HONEST, 2.0),),
        sites=10,
    ),
}
