"""A handful of the mistakes in `tests/mutants.py`; `make mutants` tries all of them."""

import pytest

from mutants import MUTANTS, hunt

# One of each kind, the quickest to find.
_TRIED = ("self._step(skip=False)", "if after > 2 * limit:", "if change.manifest is None:")


@pytest.mark.e2e
def test_mistakes_in_what_keeps_the_promise_are_found():
    tried = [mutant for mutant in MUTANTS if mutant.new in _TRIED]
    assert len(tried) == len(_TRIED)
    assert {mutant.new: outcome for mutant, outcome, _ in hunt(tried)} == dict.fromkeys(
        _TRIED, "found"
    )


def test_there_is_enough_to_find_and_each_line_is_in_the_code():
    from mutants import ROOT

    assert len(MUTANTS) >= 15
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant
        assert (ROOT / mutant.test).is_file()
