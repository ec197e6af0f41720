"""Every ε that is shown says at which δ, for whom, and for which neighbouring relation.

The code is read, not run: a new place that prints an ε is found here the day it is written.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    path
    for room in ("common", "client", "server", "simulations")
    for path in sorted((ROOT / room / "fedpact").rglob("*.py"))
]

# Text with an ε in it, in functions that do not say it all: what else does.
WORDS = {
    # Descriptions of fields: the δ and the unit are the fields beside it.
    "study_learning.py:Privacy": "target_delta and unit are the next fields",
    "study_parties.py:Evaluation": "a share of target_epsilon",
    "policy.py:Policy": "max_delta is the next field; the ledger has unit and relation",
    "wire.py:UpdateHeader": "the study that its digest names has δ and unit",
    # Help texts and words, without a value.
    "dataset_cli.py:ledger": "the caption below the table says it, and is checked here",
    "study.py:_pays_for_metrics": "words",
    "study.py:promising": "what was asked for, and is no ε",
    "site.py:_answer": "that none holds",
    "up.py:insecure_randomness": "that none holds",
    "planning.py:_metrics_line": "the caption of the table above it says it, and is checked here",
    "selftest.py:_check_agreement": "words",
    "ledger.py:_check_unit": "words: it says whose unit it is not",
    "admission.py:_wrong": "words",
    "audit.py:audit": "words",
    "summary.py:_leaves": "words",
    "comparison_report.py:_costs": "the remarks below the table say it, and are checked here",
    "comparison_report.py:_tuning_remark": "words",
    "card.py:<module>": "words: the limits",
    "audit_cli.py:<module>": "words",
    "audit_cli.py:audit": "help texts; what it prints is in _verdict and _print",
}
# Models and tables with a field for an ε, and where they have what belongs to it.
FIELDS = {
    "study_parties.py:Evaluation": "a share of target_epsilon",
    "policy.py:Policy": "max_delta; the relation is the ledger's",
    "wire.py:UpdateHeader": "the study that its digest names",
    "round_needs.py:Answer": "the study",
    "admission.py:Expected": "the study; never shown",
    "run_tables.py:AnswerRow": "the run's study",
    "ledger_plot.py:Point": "the statement that it is drawn with",
    "statement.py:RunLine": "unit: the statement that it is a line of",
    "results.py:SiteResult": "unit: the result that it is a part of",
    "results.py:RunResult": "delta: each site's",
    "cells.py:CellRound": "the cell that it is a round of",
    "planning.py:SitePlan": "the plan that it is a part of",
}
# Dictionaries that are no answer to anyone: studies that are made, values of `SitePlan`, receipts
# (whose reservations have it all), and lines of a statement that has it.
ELSEWHERE = ("demo.py", "study.py", "planning.py", "gate.py", "statement.py")
_DELTA = re.compile(r"δ|delta")
_UNIT = re.compile(r"for one|removing one|one (unit|\{|institution|record|person)|unit")
_RELATION = re.compile(r"add(ing)? or remov(e|ing)|neighbour")


def places(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Each function and class that stands in no function, with its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            yield node.name, ast.Module(fields, [])
            yield from _functions(node.body)
    yield from _functions(tree.body)
    yield "<module>", ast.Module([n for n in tree.body if isinstance(n, ast.Assign)], [])


def _functions(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def texts(node: ast.AST) -> str:
    """What a piece of code may print: its text, with names where values go, no docstrings."""
    found = []
    docstrings = {
        id(n.body[0].value)
        for n in ast.walk(node)
        if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Module)
        and n.body
        and isinstance(n.body[0], ast.Expr)
    }
    for part in ast.walk(node):
        match part:
            case ast.Constant(value=str(text)) if id(part) not in docstrings:
                found.append(text)
            case ast.FormattedValue(value=value):
                found.append(f"{{{ast.unparse(value)}}}")
    return "\n".join(found)


def said_of(path: Path) -> dict[str, str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said: dict[str, str] = {}
    for name, node in places(tree):
        said[f"{path.name}:{name}"] = said.get(f"{path.name}:{name}", "") + texts(node)
    return said


SHOWN = {place: said for path in FILES for place, said in said_of(path).items() if "ε" in said}


def test_there_are_many_places_and_those_that_are_excused_are_there():
    assert len(SHOWN) > 20
    assert WORDS.keys() - SHOWN.keys() == set()


@pytest.mark.parametrize("place", sorted(SHOWN.keys() - WORDS.keys()))
def test_every_place_that_prints_an_epsilon_is_known_and_says_what_it_is_for(place):
    said = SHOWN[place]
    assert _DELTA.search(said), f"{place}: at which δ?"
    assert _UNIT.search(said), f"{place}: for whom?"
    assert _RELATION.search(said), f"{place}: for which neighbouring relation?"


def _models() -> dict[str, set[str]]:
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = {
                    n.target.id
                    for n in node.body
                    if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
                if any("epsilon" in name for name in names):
                    found[f"{path.name}:{node.name}"] = names
    return found


MODELS = _models()


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_with_an_epsilon_has_its_delta_and_unit_or_is_known(model):
    if model not in FIELDS:
        assert any("delta" in name for name in MODELS[model]), model
        assert "unit" in MODELS[model], model


def test_every_json_object_with_an_epsilon_has_its_delta_unit_and_relation():
    """Written by hand, as a dictionary: but for those that stand in another that has it."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                keys = {k.value for k in node.keys if isinstance(k, ast.Constant)}
                spent = {key for key in keys if "epsilon" in str(key)}
                if spent and path.name not in ELSEWHERE:
                    assert {"delta", "unit", "neighbours"} <= keys, f"{path}:{node.lineno}"
