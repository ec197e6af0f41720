"""The mistakes in `tests/mutants.py`; `make mutants` tries all of them."""

import ast

from mutants import MUTANTS, ROOT


def test_there_is_enough_to_find_and_each_line_is_in_the_code():
    assert len(MUTANTS) >= 30
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant
        compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_the_tests_that_should_find_them_are_there():
    for test in {test for mutant in MUTANTS for test in mutant.tests}:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in names, test
