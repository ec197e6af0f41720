"""What a comparison says, and who has lost."""

from io import StringIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedpact.common.evaluation import Scores
from fedpact.common.worth import Comparison, SiteWorth, Worth, table
from support.site_factory import a_study

RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def scores(correct) -> Scores:
    correct = np.array(correct, dtype=bool)
    return Scores(np.where(correct, 0.25, 1.5).astype(np.float32), correct.astype(np.float32))


@given(RIGHT)
def test_the_error_is_that_of_a_paired_difference(pairs):
    alone, joined = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    found = Comparison.of(scores(alone), scores(joined), None)
    assert found.gain == pytest.approx(found.shared.score - found.alone.score)
    difference = joined - alone
    assert found.gain_error == pytest.approx(difference.std() / len(pairs) ** 0.5)
    clear = abs(found.gain) > 2 * found.gain_error
    assert (found.verdict == "no clear difference") == (not clear)
    assert found.records == len(pairs)


def test_what_is_personal_counts_where_there_is_any():
    found = Comparison.of(scores([1, 0, 0, 0]), scores([0, 0, 0, 0]), scores([1, 1, 1, 1]))
    assert (found.gain, found.verdict) == (0.75, "gained")
    with pytest.raises(ValueError, match="nothing to compare"):
        Comparison.of(scores([1]), None, None)


def test_losers_are_named_by_their_own_records_the_greatest_loss_first():
    def site(name, own, public):
        made = [
            None if gain is None else Comparison.of(scores([1, 1, 0, 0]), scores(gain), None)
            for gain in (own, public)
        ]
        return SiteWorth(site=name, own=made[0], public=made[1])

    sites = [
        site("little", [1, 0, 0, 0], [1, 1, 1, 1]),
        site("winner", [1, 1, 1, 0], [0, 0, 0, 0]),
        site("much", None, [0, 0, 0, 0]),
    ]
    assert Worth.of(a_study(), "r1", sites, private=True).losers == ("much", "little")


@pytest.mark.parametrize("share", [None, 0.5])
def test_no_name_and_no_verdict_is_cut_off_in_a_narrow_terminal(share):
    name, same = "NIHSeniorHealth", scores([1, 1, 0, 0])
    compared = Comparison.of(same, same, same)
    site = SiteWorth(site=name, own=compared, public=compared, share_of_shared=share)
    printed = StringIO()
    narrow = Console(file=printed, width=80)
    narrow.print(table(Worth.of(a_study(), "r1", [site], private=True)))
    said = printed.getvalue()
    assert "…" not in said
    assert said.count("difference") == 2
    assert ("began with the shared one" in " ".join(said.split())) == (share is not None)
