"""The page for data protection officers claims nothing that no test holds."""

import ast
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "for-data-protection-officers.md"
TEXT = PAGE.read_text(encoding="utf-8")
HEADER = "| what holds | shown by |"
LINK = re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")


def claims() -> list[tuple[str, str]]:
    """The rows of all tables of claims: what is claimed, and the cell with its tests."""
    rows, inside = [], False
    for line in TEXT.splitlines():
        inside = line.startswith("|") and (inside or line == HEADER)
        if inside and line != HEADER and not line.startswith("| ---"):
            claim, shown = (cell.strip() for cell in line.strip("|").rsplit(" | ", 1))
            rows.append((claim, shown))
    return rows


@pytest.mark.parametrize(("claim", "shown"), claims(), ids=lambda text: text[:60])
def test_each_claim_names_tests_that_are_there(claim, shown):
    assert claim.endswith(".")
    found = LINK.findall(shown)
    assert found, "no test holds it"
    assert LINK.sub("", shown).strip(", ") == ""
    for name, link in found:
        path = (PAGE.parent / link).resolve()
        assert path.is_relative_to(ROOT / "tests")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, link


def test_every_part_that_says_what_is_protected_has_claims():
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
    without = [title for title, part in parts.items() if HEADER not in part]
    assert without == ["What to ask of a study before you approve it"]
    assert len(claims()) >= 20
    assert len(LINK.findall(TEXT)) == sum(len(LINK.findall(shown)) for _, shown in claims())


def test_the_odds_are_what_epsilon_means():
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.,]+) times \| ([\d.]+) % \|$", TEXT, re.MULTILINE)
    assert [epsilon for epsilon, *_ in rows] == ["0.5", "1", "2", "3", "8"]
    for epsilon, times, percent in rows:
        odds = math.exp(float(epsilon))
        assert float(times.replace(",", "")) == pytest.approx(odds, rel=0.02)
        assert float(percent) == pytest.approx(100 * odds / (1 + odds), abs=0.5)
