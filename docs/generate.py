"""Writes the reference pages in docs/reference from the code, so that the two cannot differ.

`python docs/generate.py` writes the pages; `python docs/generate.py --check` says which of
them differ from the code and ends with 1 if any does.
"""

import argparse
import inspect
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.models import ParameterInfo

from fedpact.client.policy import Policy
from fedpact.common import errors, statuses, wire
from fedpact.common.identity import Role
from fedpact.common.signed_calls import MAX_MESSAGE, TOLERANCE_SECONDS
from fedpact.common.study import Study
from fedpact.server.doorkeeper import BURST, LONGEST_SECONDS, PER_SECOND
from fedpact.server.results import (
    CentralResult,
    ContributionResult,
    RoundResult,
    RunResult,
    SiteResult,
)
from fedpact.server.roles import ALLOWED
from fedpact.server.settings import Settings
from fedpact.simulations.cli import app
from fedpact.simulations.comparison_results import (
    COLUMNS,
    ComparisonResult,
    Failure,
    Setting,
    Spread,
    Try,
    Tuning,
    VariantResult,
)

FOLDER: Final = Path(__file__).parent / "reference"
_NOTICE: Final = "<!-- Written by docs/generate.py from the code: do not edit by hand. -->"

_CLIENT = "`fedpact client …`"
_SERVER = "`fedpact server …`, `fedpact run …`"
_UP = "`fedpact client up`, `fedpact server up`"
_EVERY = "every command"

# (name, who reads it, what it does); a test compares this with the source.
ENVIRONMENT: Final = (
    (
        "FEDPACT_CLIENT_HOME",
        _CLIENT,
        "The site's folder, as `--home`. Without either: `~/.fedpact/client`.",
    ),
    (
        "FEDPACT_CLIENT_DATABASE",
        "`fedpact client`",
        "An SQLAlchemy URL of the site's database; without it `fedpact.db` in the site's folder.",
    ),
    (
        "FEDPACT_SERVER_HOME",
        _SERVER,
        "The coordinator's folder, as `--home`. Without either: `~/.fedpact/server`.",
    ),
    (
        "FEDPACT_LOG_LEVEL",
        _UP,
        "How much is logged: `DEBUG`, `INFO` (the default), `WARNING` or `ERROR`.",
    ),
    (
        "FEDPACT_LOG_FORMAT",
        _UP,
        "`text` (the default), or `json`: one object a line.",
    ),
    (
        "FEDPACT_METRICS_PORT",
        _UP,
        "As `--metrics-port`: where metrics for Prometheus are served. Without either: nowhere.",
    ),
    (
        "FEDPACT_METRICS_HOST",
        _UP,
        (
            "The address that they are served on; without it 127.0.0.1. On any that is not loopback a "
            "site leaves out what its data sets have spent."
        ),
    ),
    (
        "FEDPACT_INSECURE_SEED",
        "`fedpact client up`",
        (
            "A number from which sampling and noise are then drawn, so that a test can be repeated. **Not "
            "private**: said aloud at the start and in each round, named in each receipt, and refused unless the "
            "policy has `allow_insecure_seed = true`."
        ),
    ),
    (
        "FEDPACT_DATA",
        "`benchmarks/`",
        "A folder with the public data sets that some benchmarks can use.",
    ),
    (
        "FEDPACT_TEST_POSTGRES",
        "`tests/`",
        (
            "An SQLAlchemy URL of a PostgreSQL that the tests may use. Without it they start one of "
            "their own where PostgreSQL is installed, and are skipped elsewhere."
        ),
    ),
)

# (name, whose it is, what it means here)
OTHERS: Final = (
    (
        "HF_HUB_OFFLINE",
        "Hugging Face",
        (
            "`1`: no base model is fetched from the hub. `fedpact client up` and `fedpact demo` set "
            "it, unless the former finds it set to something else."
        ),
    ),
    ("HF_HOME", "Hugging Face", "Where models that were fetched are kept."),
    (
        "GRPC_VERBOSITY",
        "gRPC",
        (
            "`ERROR`, `INFO` or `DEBUG`: gRPC says on standard error what it does. `fedpact` sets it to "
            "`NONE`, unless it is set: what goes wrong is said in a sentence."
        ),
    ),
    (
        "HTTPS_PROXY, NO_PROXY",
        "httpx, gRPC",
        (
            "The proxy through which a site dials the coordinator, and what is not dialled through "
            "it. The coordinator never sends its own loopback traffic to a proxy."
        ),
    ),
    (
        "FLWR_TELEMETRY_ENABLED, RAY_USAGE_STATS_ENABLED",
        "Flower, Ray",
        (
            "Nothing is reported to their makers: the coordinator sets the first to 0; a "
            "simulation on Ray sets both to 0 unless they are set."
        ),
    ),
    (
        "CUDA_VISIBLE_DEVICES",
        "CUDA",
        "Which GPUs are seen. The first is used where there is one; otherwise the CPU.",
    ),
    (
        "OMP_NUM_THREADS",
        "PyTorch",
        (
            "Threads for arithmetic. Several processes on one machine are faster if they share the "
            "cores out; `fedpact demo` does so."
        ),
    ),
)

# What the results' own docstrings leave to the name.
_RESULT_WORDS: Final = {
    ("RunResult", "run"): "The run's identifier.",
    ("RunResult", "study"): "The study's name.",
    ("RunResult", "study_digest"): "SHA-256 of the study's canonical JSON.",
    (
        "RunResult",
        "status",
    ): "One of waiting, running, completed, stopped, failed and interrupted.",
    ("RunResult", "message"): "Why it ended; empty if there is nothing to say.",
    ("RunResult", "rounds"): "One entry for each round that began.",
    ("RunResult", "sites"): "One entry for each institution of the study.",
    ("RunResult", "unit"): "The privacy unit: ε is for adding or removing one of these.",
    ("RunResult", "seconds"): "Time in rounds, summed.",
    ("RunResult", "adapter"): "The folder with the adapter; empty while there is none.",
    ("RoundResult", "round"): "Its number, from 1.",
    (
        "RoundResult",
        "loss",
    ): "On the public test set, after the round; null where it was not measured.",
    ("RoundResult", "seconds"): "How long it took; null while it is under way.",
    ("SiteResult", "name"): "The institution.",
    ("SiteResult", "sector"): "Its sector.",
    ("SiteResult", "delta"): "The δ at which ε is stated.",
    ("SiteResult", "bytes_out"): "Bytes that its site sent in the run, as the coordinator saw.",
}

_KINDS: Final = {"string": "text", "boolean": "true or false", "object": "table"}


def study_page() -> str:
    """Every key of a study file, from the pydantic models."""
    lines = [
        "# The study file",
        "",
        "A study is one TOML file. `fedpact study new` writes one to start from, `fedpact study",
        "check` says what is wrong with one. Unknown keys are refused. Every key is part of the",
        "study digest, those that are left out at their defaults.",
    ]
    for name, field in Study.model_fields.items():
        model = _model_in(field.annotation)
        heading = f"[[{name}]]" if name == "institutions" else f"[{name}]"
        said = (model.__doc__ or "").partition(":")[2].strip()
        lines += ["", f"## `{heading}`", "", _capitalised(said), "", *_fields(model)]
    lines += [
        "",
        "## What must fit together",
        "",
        "- No label and no institution stands twice.",
        "- `federation.quorum` is at most the number of institutions.",
        "- `training.rounds` times `training.local_steps` is at most 100,000.",
        '- Where `evaluation.site_metrics` is "private", `privacy.mechanism` is not "none": there would',
        "  be no ε to pay with. `evaluation.per_class` needs it to be private.",
        "- Under DP, `privacy.target_delta` is at most one over the declared records of every",
        "  institution: above that the promise would be empty.",
    ]
    return _page(lines)


def policy_page() -> str:
    """Every rule of a site's policy."""
    return _page(
        [
            "# The policy file",
            "",
            "`policy.toml` lies in the site's folder and is read there only, anew for each request.",
            "Without the file the defaults hold. A rule that is not known is an error, and nothing",
            "runs until it is mended: it may be a rule that was mistyped.",
            "",
            *_fields(Policy),
        ]
    )


def server_page() -> str:
    """Every setting of `server.toml`; what each means stands in the class's docstring."""
    words = _attributes(Settings.__doc__ or "")
    return _page(
        [
            "# The coordinator's settings",
            "",
            "`server.toml` lies in the coordinator's folder. `fedpact server init` writes it; restart",
            "`fedpact server up` after a change.",
            "",
            *_fields(Settings, words),
        ]
    )


def results_page() -> str:
    """The JSON that demo, simulate and run watch print."""
    lines = [
        "# Results as JSON",
        "",
        "`fedpact demo`, `fedpact simulate` and `fedpact run watch` print this object with",
        "`--format json`, on standard output; progress goes to standard error.",
    ]
    lines += _described(RunResult, RoundResult, ContributionResult, SiteResult, CentralResult)
    lines += [
        "",
        "## Comparisons",
        "",
        "`fedpact simulate --compare` prints a `ComparisonResult` with `--format json` and writes it to",
        "`summary.json` in its folder. Beside it lies `rounds.parquet`: one row for each round of each",
        f"cell, with the columns {', '.join(f'`{name}`' for name in COLUMNS)}. There, bytes are those of",
        "all sites together, and ε is what the run has cost so far, the largest of all sites.",
    ]
    lines += _described(ComparisonResult, Setting, VariantResult, Spread, Tuning, Try, Failure)
    lines += [
        "",
        "## Other commands with `--format json`",
        "",
        "| command | prints |",
        "| --- | --- |",
        "| `fedpact run propose` | an object: `study_digest` |",
        (
            "| `fedpact run studies` | a list of objects: `study_digest`, `study`, `state`, `proposer`, "
            "`proposed_at`, `signed`, `missing`, `decisions` (`institution`, `kind`, `reason`, "
            "`moment`) |"
        ),
        (
            "| `fedpact client studies` | a list of objects: `study_digest`, `study`, `proposer`, "
            "`state`, `here`, `missing`, `heard_at` |"
        ),
        "| `fedpact client show` | an object: what is asked, line by line, in words |",
        "| `fedpact client results` | a list of runs, each as above |",
        "| `fedpact run start` | an object: `run` |",
        (
            "| `fedpact run report` | an object: `run`, `study`, `study_digest`, `measure`, `rounds`, "
            "`public` and `sites` (`site`, `scores`, `contributions`, `loss_contributions`), a number or "
            "null for each round, `site_metrics`, `worth` (of a simulation; or null) |"
        ),
        (
            "| `fedpact client report`, `worth.json` of a simulation | an object: `run`, `study`, "
            "`study_digest`, `personalisation`, `measure`, `alone`, `losers`, `sites` (`site`, `own` and "
            "`public`, each null or an object: `records`, `alone`, `shared` and `personal` (each `loss`, "
            "`score`; or null), `gain`, `gain_error`) |"
        ),
        "| `fedpact run list` | a list of objects: `run`, `study`, `status`, `message` |",
        "| `fedpact study show` | an object: `digest`, `study` (every default filled in) |",
        (
            "| `fedpact server status` | an object: `folder`, `address`, `service`, `up`, `process`, "
            "`superlink` (down, starting or up), `ca_fingerprint`, `ca_valid_until`, "
            "`certificate_valid_until`, `institutions` (how many are `invited`, `joined`, `revoked` and "
            "`online`), `run` (the newest: `run`, `study`, `status`, `round`, `rounds`; or null) |"
        ),
        (
            "| `fedpact server institutions` | a list of objects: `name`, `sector`, `state`, `online`, "
            "`invited_at`, `joined_at`, `node_id` |"
        ),
        (
            "| `fedpact client dataset list` | a list of objects: `name`, `population`, `records`, `format`, "
            "`state`, `sha256`, `path`, `added_at` |"
        ),
        "| `fedpact client policy show` | an object: every rule of the policy, by name |",
        (
            "| `fedpact client ledger` | an object: `datasets` (each with `name`, `unit`, `neighbours`, "
            "`population`, `epsilon`, `delta`, `cap`, `remaining`, `runs`); an infinite ε is null |"
        ),
        (
            "| `fedpact client status` | an object: `institution`, `coordinator`, `up`, "
            "`connected_since`, `run`, `round`, `outcome` and `answered_at` of the last answer, `left` "
            "(`updates`, `refusals`, `failures`, `bytes`), `ca_days_left`, `datasets` (each with `name`, "
            "`epsilon`, `delta`, `cap`, `unit`) |"
        ),
        (
            "| `fedpact client departures` | a list of objects: `at`, `run`, `round`, `kind`, `bytes`, "
            "`sha256`, `reason` |"
        ),
        (
            "| `fedpact client doctor` | a list of objects: `check`, `state` (ok, warn, wrong or "
            "skipped), `found`, `advice` |"
        ),
        (
            "| `fedpact client audit` | an object: `claimed_epsilon`, `delta`, `unit`, `neighbours`, "
            "`covered_epsilon` (the same for a canary: more where it has more records than the unit), "
            "`lower_bound` (of ε, at `confidence`), `ceiling` (the bound if every guess were right), "
            "`canaries`, `guesses`, `correct`, `contradicted`, `membership` (`records`; `loss` and "
            "`likelihood_ratio`, each with `auc` and `tpr_at_1_percent_fpr`, or null), `verdict` |"
        ),
    ]
    return _page(lines)


def _described(*models: type[BaseModel]) -> Iterator[str]:
    """A section for each of some models of results."""
    for model in models:
        name = model.__name__
        words = {key: text for (owner, key), text in _RESULT_WORDS.items() if owner == name}
        yield from ("", f"## {name}", "", (model.__doc__ or "").strip(), "")
        yield from _fields(model, words, defaults=False)


_BY: Final = {
    "public": "public: known without the records",
    "dp-sgd": "DP-SGD in training; the ledger holds its cost",
    "gaussian": "Gaussian mechanism on sums to which each record adds little; the ledger holds "
    "its cost",
    "refusal": "not noised: at most one bit, [said here](../explanation/privacy.md#refusals)",
}


def what_leaves_page() -> str:
    """Every field that leaves a site in a round, from the wire's models."""
    lines = [
        "# What leaves a site in a round",
        "",
        "One of these two messages goes out for a request, and nothing else that training, measuring",
        "or a rule gave. A test compares the list with the messages that are sent, field by field. What",
        "a site says outside rounds (joining, decisions, Flower's own calls) holds nothing of records:",
        "see [what is private](../explanation/privacy.md#what-leaves-a-site).",
    ]
    for title, model in (("An update", wire.UpdateHeader), ("A refusal", wire.Refusal)):
        rows = [
            (f"`{path}`", leaves.what, _BY[leaves.by])
            for path, leaves in wire.what_leaves(model).items()
        ]
        lines += ["", f"## {title}", "", *_table(("field", "what it is", "mechanism"), rows)]
    return _page(lines)


def exit_codes_page() -> str:
    """Every exit code, from the errors."""
    rows = [
        ("0", "", "It did what was asked."),
        ("1", "", "`fedpact client doctor` found something wrong."),
        *(
            (str(kind.exit_code), f"`{kind.__name__}`", " ".join((kind.__doc__ or "").split()))
            for kind in error_kinds()
        ),
        ("130", "", "Interrupted with Ctrl-C."),
    ]
    return _page(
        [
            "# Exit codes",
            "",
            "An error is one sentence on standard error, and where it helps a second one that says",
            "what to do next. A command line that cannot be parsed ends with 2 as well.",
            "",
            *_table(("code", "error", "meaning"), rows),
        ]
    )


def environment_page() -> str:
    """Every environment variable."""
    return _page(
        [
            "# Environment variables",
            "",
            *_table(("variable", "read by", "meaning"), _named(ENVIRONMENT)),
            "",
            "Those of other software mean here what they mean elsewhere:",
            "",
            *_table(("variable", "belongs to", "meaning"), _named(OTHERS)),
        ]
    )


def control_plane_page() -> str:
    """The control plane: who may call what, and what a refusal says."""
    roles = list(Role)
    methods = sorted(ALLOWED, key=lambda method: (not method.startswith("/fedpact"), method))
    rows = [
        (f"`{method[1:]}`", *("yes" if role in ALLOWED[method] else "" for role in roles))
        for method in methods
    ]
    words = [
        (f"`{word}`", f"`{code.name}`", f"`{kind.__name__}`")
        for word, code, kind in statuses.reasons()
    ]
    return _page(
        [
            "# Control plane",
            "",
            "`fedpact.v1` is gRPC over TLS on `service_port`; its messages are in",
            "[`federation.proto`](../../common/fedpact/common/v1/federation.proto). Every call is signed",
            "by the caller's key, as",
            "[`signed_calls.py`](../../common/fedpact/common/signed_calls.py) says, and has a deadline of",
            f"at most {LONGEST_SECONDS:.0f} seconds. `Join` alone is not signed: it carries the secret of",
            "an invitation.",
            "",
            "## Who may call what",
            "",
            *_table(("method", *roles), rows),
            "",
            "## What a refusal says",
            "",
            "A caller that has not proven itself gets `UNAUTHENTICATED` and nothing else. Other refusals",
            f"have a word in the trailing metadata `{statuses.REASON}`; what to do next may be in",
            f"`{statuses.ADVICE}`.",
            "",
            *_table(("reason", "status", "raised by `fedpact` as"), words),
            "",
            "## Limits",
            "",
            f"- A message has at most {MAX_MESSAGE >> 20} MiB.",
            f"- A caller may call {PER_SECOND:.0f} times a second in the long run, {BURST:.0f} times at once.",
            f"- Clocks may differ by {TOLERANCE_SECONDS:.0f} seconds.",
        ]
    )


def cli_page() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# The command line",
        "",
        "`fedpact NOUN VERB`. Every command has `--help`; those that print a table have `--format",
        "json`. Exit codes are in [exit-codes.md](exit-codes.md).",
    ]
    for path, command in _commands(typer.main.get_command(app), ("fedpact",)):
        lines += ["", f"## `{' '.join(path)}`", "", " ".join((command.help or "").split()), ""]
        usage = [*path]
        options = [p for p in command.params if isinstance(p, click.Option)]
        arguments = [p for p in command.params if not isinstance(p, click.Option)]
        usage += ["[OPTIONS]"] if options else []
        usage += [_argument(p) if p.required else f"[{_argument(p)}]" for p in arguments]
        lines += ["```", " ".join(usage), "```", ""]
        words = _words(command)
        rows = [_parameter_row(p, words) for p in (*arguments, *options)]
        lines += _table(("argument or option", "value", "default", "meaning"), rows)
    return _page(lines)


PAGES: Final = {
    "study.md": study_page,
    "policy.md": policy_page,
    "server-settings.md": server_page,
    "control-plane.md": control_plane_page,
    "cli.md": cli_page,
    "exit-codes.md": exit_codes_page,
    "what-leaves.md": what_leaves_page,
    "results.md": results_page,
    "environment.md": environment_page,
}


def error_kinds() -> list[type[errors.FedpactError]]:
    """Every error that fedpact raises on purpose, by its exit code."""
    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.FedpactError)
    ]
    return sorted(kinds, key=lambda kind: kind.exit_code)


def _commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, under its whole name."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands(inner, (*path, name))
    else:
        yield path, command


def _argument(parameter: click.Parameter) -> str:
    return (parameter.name or "").upper()


def _words(command: click.Command) -> dict[str, str]:
    """What a command's function says of its parameters: Typer keeps it for options only."""
    function = inspect.unwrap(command.callback) if command.callback else None
    hints = typing.get_type_hints(function, include_extras=True) if function else {}
    return {
        name: " ".join((info.help or "").split())
        for name, hint in hints.items()
        for info in getattr(hint, "__metadata__", ())
        if isinstance(info, ParameterInfo)
    }


def _parameter_row(
    parameter: click.Parameter, words: dict[str, str]
) -> tuple[str, str, str, str]:
    names = f"`{_argument(parameter)}`"
    if isinstance(parameter, click.Option):
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    meaning = words[parameter.name or ""]
    if parameter.envvar:
        meaning += f" Environment: `{parameter.envvar}`."
    return names, _value(parameter), _default(parameter), meaning


def _value(parameter: click.Parameter) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange):
        most = "" if kind.max is None else f" to {kind.max}"
        return f"integer, {kind.min}{most}" if most else f"integer, from {kind.min}"
    return {"text": "text", "path": "path", "file": "path"}.get(kind.name, kind.name)


def _default(parameter: click.Parameter) -> str:
    default = parameter.default
    if parameter.required:
        return "required"
    is_flag = getattr(parameter, "is_flag", False)
    return "" if default is None or is_flag else f"`{default}`"


def _fields(
    model: type[BaseModel], words: dict[str, str] | None = None, *, defaults: bool = True
) -> list[str]:
    """A table of a model's fields."""
    schema = model.model_json_schema()
    rows = []
    for name, field in model.model_fields.items():
        meaning = field.description or (words or {}).get(name)
        if not meaning:
            raise ValueError(f"{model.__name__}.{name} has no description")
        default = _toml(field.default) if field.default is not PydanticUndefined else "required"
        value = _kind(schema["properties"][name], schema.get("$defs", {}))
        row = (f"`{name}`", value, default, " ".join(meaning.split()))
        rows.append(row if defaults else (*row[:2], *row[3:]))
    heads = ("key", "value", "default", "meaning")
    return _table(heads if defaults else (*heads[:2], *heads[3:]), rows)


def _kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        found = definitions[name]
        return _kind(found, definitions) if "enum" in found else name
    if "anyOf" in schema:
        kinds = [_kind(part, definitions) for part in schema["anyOf"]]
        return " or ".join("none" if kind == "null" else kind for kind in kinds)
    if "const" in schema:
        return f"`{_toml_inner(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{_toml_inner(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'], definitions)}"
    if schema.get("pattern") == "^[0-9a-f]{64}$":
        return "SHA-256, hexadecimal"
    kind = str(schema["type"])
    return _KINDS.get(kind, kind) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    parts = [
        *([f"from {lowest:g}"] if lowest is not None else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"to {highest:,}"] if highest is not None else []),
        *([f"below {below:g}"] if below is not None else []),
    ]
    return f", {' '.join(parts)}" if parts else ""


def _toml(value: object) -> str:
    return "none" if value is None else f"`{_toml_inner(value)}`"


def _toml_inner(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(map(_toml_inner, value))}]"
        case float():
            return f"{value:g}" if 0 < abs(value) < 1e-3 else str(value)  # noqa: PLR2004
        case _:
            return str(value)


def _model_in(annotation: object) -> type[BaseModel]:
    """The section that a field of the study holds, alone or in a tuple."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise TypeError(f"no section in {annotation}")


def _attributes(docstring: str) -> dict[str, str]:
    """What the `Attributes:` of a docstring say, by name; each stands on one line."""
    listing = docstring.partition("Attributes:")[2].strip().splitlines()
    pairs = (line.strip().partition(": ") for line in listing)
    return {name: _capitalised(text) for name, _, text in pairs}


def _named(
    rows: Iterable[tuple[str, str, str]],
) -> list[tuple[str, str, str]]:
    return [
        (", ".join(f"`{name}`" for name in names.split(", ")), whose, meaning)
        for names, whose, meaning in rows
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_row(heads), _row(["---"] * len(heads))]
    return [*lines, *(_row(cell.replace("|", r"\|") for cell in row) for row in rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _capitalised(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def _page(lines: Sequence[str]) -> str:
    title, *rest = lines
    return "\n".join([title, "", _NOTICE, *rest]).rstrip() + "\n"


def different() -> list[str]:
    """Names of the pages that are not what the code says."""
    return [
        name
        for name, page in PAGES.items()
        if not (FOLDER / name).is_file()
        or (FOLDER / name).read_text(encoding="utf-8") != page()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one differs")
    if parser.parse_args(arguments).check:
        wrong = different()
        for name in wrong:
            sys.stdout.write(f"docs/reference/{name} differs from the code: `make docs`.\n")
        return 1 if wrong else 0
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
