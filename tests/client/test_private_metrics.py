"""Private metrics: what one record or person can change is bounded, and the noise is as reserved."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpact.client.private_metrics import release, sensitivity
from fedpact.common.evaluation import Scores
from fedpact.common.mechanism import GaussianRelease
from fedpact.common.records import EncodedRecords
from support.site_factory import INSTITUTION, RECORDS, a_study

STUDY = a_study(evaluation={"site_metrics": "private", "validation_fraction": 0.1})
EXPECTED = RECORDS * 0.1
SENSITIVITY = sensitivity(STUDY)
PERSONS = 400
BY_PERSON = {
    "task": {"person_column": "who"},
    "privacy": {"unit": "person", "max_records_per_person": 4},
    "institutions": [
        {"name": INSTITUTION, "sector": "academia", "records": RECORDS, "persons": PERSONS}
    ],
}


def by_class(**sections):
    evaluation = {"site_metrics": "private", "validation_fraction": 0.1, "per_class": True}
    return a_study(evaluation=evaluation, **sections)


class Silence(np.random.Generator):
    """Noise that is none."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def standard_normal(self, size=None, *_):
        return np.zeros(size)


def measured(
    losses, correct, noise: float = 1.0, rng=None, *, study=STUDY, labels=None, persons=None
):
    scores = Scores(np.asarray(losses, np.float32), np.asarray(correct, np.float32))
    labels = [0] * len(scores.losses) if labels is None else labels
    records = EncodedRecords.from_lists([[1]] * len(labels), labels)
    if persons is not None:
        records = replace(records, persons=np.asarray(persons, np.int64))
    how = GaussianRelease(noise, 1)
    return release(scores, records, study, INSTITUTION, how, rng or Silence())


def sums(found, study):
    """All that is released, as the sums to which the noise was added."""
    expected = study.expected_validation(INSTITUTION)
    middles = (found.accuracy * expected, found.loss / study.loss_clip * expected)
    return np.array([*middles, *found.right, *found.wrong])


RECORD = st.tuples(st.floats(width=32), st.booleans())  # not-a-numbers and infinities too


@given(records=st.lists(RECORD, max_size=20), one=RECORD)
def test_one_record_moves_the_sums_by_no_more_than_the_noise_is_for(records, one):
    without, with_it = (
        measured([loss for loss, _ in some], [right for _, right in some])
        for some in (records, [*records, one])
    )
    moved = math.hypot(
        with_it.accuracy - without.accuracy,
        (with_it.loss - without.loss) / STUDY.loss_clip,
    )
    assert moved * EXPECTED <= SENSITIVITY * (1 + 1e-9)


# What the model says of a record with its label: the loss, the score (whatever it is), the label.
LABELLED = st.tuples(st.floats(width=32), st.floats(width=32), st.integers(0, 1))


@pytest.mark.parametrize("study", [by_class(**BY_PERSON), by_class()])
@given(data=st.data())
def test_one_unit_with_all_its_records_moves_all_sums_together_by_no_more(study, data):
    """Somebody with any number of records comes or goes; for a record, that number is one."""
    of_persons = study.privacy.unit == "person"
    crowd = data.draw(st.lists(st.tuples(LABELLED, st.integers(1, 5)), max_size=12))
    one = data.draw(st.lists(LABELLED, min_size=1, max_size=60 if of_persons else 1))

    def released(members):
        rows = [record for record, _ in members]
        losses, correct, labels = zip(*rows, strict=True) if rows else ((), (), ())
        persons = [person for _, person in members] if of_persons else None
        found = measured(losses, correct, study=study, labels=list(labels), persons=persons)
        return sums(found, study)

    moved = released([*crowd, *((record, 9) for record in one)]) - released(crowd)
    assert np.linalg.norm(moved) <= sensitivity(study) * (1 + 1e-9)


def test_the_bound_is_reached_so_no_noise_is_wasted():
    for study in (STUDY, by_class(), by_class(**BY_PERSON)):
        persons = [3] * 50 if study.privacy.unit == "person" else [3]
        many = len(persons)
        there = measured(
            [0.0] * many, [True] * many, study=study, labels=[1] * many, persons=persons
        )
        gone = measured([], [], study=study)
        moved = np.linalg.norm(sums(there, study) - sums(gone, study))
        assert moved == pytest.approx(sensitivity(study))


def test_a_person_counts_once_whatever_they_wrote():
    study = by_class(**BY_PERSON)
    # One with three records, two of them right and two of label 1; one with a single record.
    found = measured(
        [0.0, 0.0, 3.0, 0.0],
        [True, True, False, False],
        study=study,
        labels=[1, 1, 0, 0],
        persons=[7, 7, 7, 8],
    )
    assert found.right == pytest.approx((0, 2 / 3))
    assert found.wrong == pytest.approx((4 / 3, 0))
    expected = PERSONS * 0.1
    assert found.accuracy == pytest.approx(0.5 + (2 / 3 - 1 / 2 - 1 / 2) / expected)
    assert found.count_noise == pytest.approx(math.sqrt(1.5))
    assert found.accuracy_noise == pytest.approx(math.sqrt(1.5) / expected)


def test_counts_by_class_are_those_of_the_labels_and_only_where_they_are_asked_for():
    labels, correct = (
        [0] * 30 + [1] * 70,
        [True] * 20 + [False] * 10 + [True] * 65 + [False] * 5,
    )
    found = measured([0.1] * 100, correct, study=by_class(), labels=labels)
    assert (found.right, found.wrong) == ((20, 65), (10, 5))
    assert found.accuracy == pytest.approx(0.85)
    without = measured([0.1] * 100, correct, labels=labels)
    assert (without.right, without.wrong, without.count_noise) == ((), (), 0)
    rng = np.random.default_rng(0)
    noisy = [
        measured([], [], 8.0, rng, study=by_class(), labels=[]).right[0] for _ in range(3000)
    ]
    assert np.std(noisy) == pytest.approx(8 * math.sqrt(1.5), rel=0.05)


def test_without_noise_they_are_the_means_where_the_size_is_as_declared():
    losses = np.linspace(0, STUDY.loss_clip, 100)
    found = measured(losses, np.arange(100) < 80)
    assert found.kind == "private"
    assert found.accuracy == pytest.approx(0.8)
    assert found.loss == pytest.approx(losses.mean())
    # A loss beyond the clip counts as the clip.
    assert measured([1e30] * 100, [True] * 100).loss == pytest.approx(STUDY.loss_clip)


def test_the_number_of_records_is_not_in_what_leaves():
    """A head at zero guesses: ln 2 and one half, however many there are."""
    few, many = (measured([math.log(2)] * n, [True, False] * (n // 2)) for n in (10, 400))
    assert few.loss == pytest.approx(many.loss)
    assert few.accuracy == many.accuracy == 0.5
    nothing = measured([], [])
    assert (nothing.accuracy, nothing.loss) == (0.5, pytest.approx(math.log(2)))


def test_the_noise_is_as_large_as_stated_and_not_the_same_for_both():
    rng = np.random.default_rng(0)
    found = [measured([0.3] * 100, [True] * 100, 8.0, rng) for _ in range(4000)]
    loss, accuracy = (
        np.array([getattr(f, name) for f in found]) for name in ("loss", "accuracy")
    )
    assert found[0].accuracy_noise == pytest.approx(8.0 * SENSITIVITY / EXPECTED)
    assert accuracy.std() == pytest.approx(found[0].accuracy_noise, rel=0.05)
    assert loss.std() == pytest.approx(found[0].loss_noise, rel=0.05)
    assert abs(np.corrcoef(loss, accuracy)[0, 1]) < 0.06
