"""ε under other neighbouring relations, against published figures and the ledger's own."""

import pytest

from fedpact.common import accounting, neighbours
from fedpact.common.mechanism import SubsampledGaussian

RUN = SubsampledGaussian(noise_multiplier=1.0, sample_rate=0.02, steps=500)
DELTA = 1e-5


@pytest.mark.parametrize(("records", "published"), [(2, 6.1), (4, 13.9), (8, 33.5)])
def test_a_person_with_several_records_risks_what_is_published(records, published):
    found = neighbours.person_epsilon(RUN, records, DELTA)
    assert found == pytest.approx(published, abs=0.05)


def test_a_person_with_one_record_is_that_record():
    record = accounting.epsilon([RUN], DELTA)
    assert record <= neighbours.person_epsilon(RUN, 1, DELTA) <= 1.01 * record


def test_replacing_a_record_costs_more_than_removing_it_and_less_than_two_records():
    removed = accounting.epsilon([RUN], DELTA)
    replaced = neighbours.replace_one_epsilon(RUN, DELTA)
    assert removed < replaced < neighbours.person_epsilon(RUN, 2, DELTA)
