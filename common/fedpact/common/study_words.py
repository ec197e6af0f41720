"""Kinds of values that stand in several sections of a study."""

from typing import Annotated, Literal

from pydantic import StringConstraints

OptimizerName = Literal["sgd", "adamw"]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Names come from other parties and end in logs, terminals and databases: no control characters,
# line separators or reversed writing in them.
Name = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=120,
        strip_whitespace=True,
        pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069]+$",
    ),
]
# Line breaks and tabs are part of a longer text.
Text = Annotated[
    str,
    StringConstraints(
        max_length=10_000,
        pattern=r"^(?:[\n\t]|[^\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069])*$",
    ),
]
Use = Literal[
    "research", "public-health", "safety-monitoring", "quality-improvement", "product"
]
# Beyond it, a site would compose privacy losses for hours.
MAX_STEPS = 100_000
