"""Study files: one digest, every mistake named with its line, nothing unknown let through."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpact.common import study as studies
from fedpact.common import study_check
from fedpact.common.errors import StudyError
from fedpact.common.study import Study
from support.site_factory import a_study

FILE = """\
[study]
name = "triage"

[task]
labels = ["mild", "severe"]

[model]
base = "somewhere/bert"

[training]
batch_size = 50

[[institutions]]
name = "Clinic"
sector = "academia"
records = 1000

[[institutions]]
name = "Agency"
sector = "government"
records = 2000
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(tmp_path: Path, text: str) -> list[str]:
    _, found = study_check.read(write(tmp_path, text))
    return [str(problem) for problem in found]


# The digest


def test_a_file_is_read_with_its_defaults(tmp_path):
    study = studies.load(write(tmp_path, FILE))
    assert study.study.name == "triage"
    assert study.adapter.r == 8
    assert [institution.name for institution in study.institutions] == ["Clinic", "Agency"]
    assert study.is_private


def test_the_digest_is_of_what_is_said_not_of_how(tmp_path):
    plain = studies.load(write(tmp_path, FILE))
    said_out = FILE.replace(
        "[training]\n", "# a comment\n[training]\nrounds=10\nlearning_rate = 0.001\n"
    )
    assert studies.load(write(tmp_path, said_out)).digest == plain.digest
    other = studies.load(write(tmp_path, FILE.replace("batch_size = 50", "batch_size = 51")))
    assert other.digest != plain.digest


def test_the_digest_is_the_same_in_another_process(tmp_path):
    path = write(tmp_path, FILE)
    code = (
        "import sys; from pathlib import Path; from fedpact.common import study;"
        "print(study.load(Path(sys.argv[1])).digest)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == studies.load(path).digest


def test_the_canonical_form_comes_back_and_no_other_is_taken():
    study = a_study()
    text = study.canonical()
    assert Study.from_canonical(text) == study
    assert Study.from_canonical(text).digest == study.digest
    document = json.loads(text)
    reversed_keys = dict(reversed(document.items()))
    without_default = {k: v for k, v in document.items() if k != "adapter"}
    for other in (
        text + " ",
        json.dumps(document),
        json.dumps(reversed_keys, separators=(",", ":")),
        json.dumps(without_default, separators=(",", ":"), sort_keys=True),
        text.replace('"rounds":20', '"rounds":20.0'),
        text.replace('"rounds":20', '"rounds":"20"'),
        text.replace('"rounds":20', '"rounds":20,"rounds":20'),
    ):
        with pytest.raises(StudyError):
            Study.from_canonical(other)


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", "{", "\ud800", '"\\ud800"', "NaN"])
def test_what_is_no_study_is_refused(text):
    with pytest.raises(StudyError):
        Study.from_canonical(text)


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(min_size=1, max_size=20).filter(
        lambda text: text.isprintable() and text.strip() == text
    ),
    purpose=st.text(max_size=50).filter(
        lambda text: all(c.isprintable() or c in "\n\t" for c in text)
    ),
    epsilon=st.floats(1e-3, 1e6),
    rounds=st.integers(1, 100_000),
)
def test_every_study_survives_its_canonical_form(name, purpose, epsilon, rounds):
    study = a_study(
        study={"name": name, "purpose": purpose},
        privacy={"target_epsilon": epsilon},
        training={"rounds": rounds},
    )
    assert Study.from_canonical(study.canonical()) == study


# What is wrong, and where


@pytest.mark.parametrize(
    ("change", "to", "problem"),
    [
        ("batch_size = 50", "batchsize = 50", "line 11: training.batchsize: there is no such key; did you mean `batch_size`?"),
        ("[training]", "[trainning]", "line 10: trainning: there is no such key; did you mean `training`?"),
        ("records = 2000", "recrods = 2000", "line 21: institutions.1.recrods: there is no such key; did you mean `records`?"),
        ("batch_size = 50", "zzz = 50", "line 11: training.zzz: there is no such key; known are rounds, "),
        ("batch_size = 50", "batch_size = 0", "line 11: training.batch_size: Input should be greater than"),
        ("batch_size = 50", 'batch_size = "many"', "line 11: training.batch_size: Input should be a valid integer"),
        ("batch_size = 50", 'optimizer = "adam"', "line 11: training.optimizer: Input should be 'sgd' or 'adamw', not 'adam'"),
        ("batch_size = 50", "learning_rate = nan", "line 11: training.learning_rate: "),
        ("batch_size = 50", "learning_rate = inf", "line 11: training.learning_rate: "),
        ('sector = "government"', 'sector = "state"', "line 20: institutions.1.sector: Input should be 'academia', 'industry' or 'government', not 'state'"),
        ('labels = ["mild", "severe"]', 'labels = ["mild"]', "line 5: task.labels: "),
        ('labels = ["mild", "severe"]', 'labels = ["mild", "mild"]', "line 4: task: a label stands in `labels` twice"),
        ('name = "Agency"', 'name = "Clinic"', "an institution stands in `institutions` twice"),
        ("[training]", "[federation]\nquorum = 3\n[training]", "`federation.quorum` is 3 but only 2 institutions take part"),
        ("[training]", "[privacy]\ntarget_delta = 0.002\n[training]", "`privacy.target_delta` is above 1/1000"),
        ("[training]", "[privacy]\ntarget_epsilon = 0\n[training]", "line 11: privacy.target_epsilon: "),
        ("[training]", "[privacy]\ntarget_delta = 1\n[training]", "line 11: privacy.target_delta: "),
        ("[training]", '[privacy]\nunit = "people"\n[training]', "line 11: privacy.unit: "),
        ("[training]", '[privacy]\nunit = "person"\n[training]', '`privacy.unit = "person"` needs `task.person_column`'),
        ("[training]", "[privacy]\nmax_records_per_person = 3\n[training]", '`privacy.max_records_per_person` is for `privacy.unit = "person"` alone'),
        ('labels = ["mild", "severe"]', 'labels = ["mild", "severe"]\nperson_column = "p"', '`task.person_column` is for `privacy.unit = "person"` alone'),
        ("[training]", '[evaluation]\nsha256 = "abc"\n[training]', "line 11: evaluation.sha256: "),
        ("[training]", "[evaluation]\nsite_metrics = true\n[training]", "line 11: evaluation.site_metrics: Input should be 'none', 'private' or 'raw'"),
        ("[training]", "[evaluation]\nper_class = true\n[training]", "`evaluation.per_class` needs"),
        ("[task]", '[evaluation]\nper_class = true\nsite_metrics = "private"\n[task]\nname = "multi-label-classification"', "`evaluation.per_class` counts by label"),
        ("[training]", '[privacy]\nmechanism = "none"\n[evaluation]\nsite_metrics = "private"\n[training]', '`evaluation.site_metrics` is "private"'),
        ('name = "triage"', 'name = ""', "line 2: study.name: "),
        ('name = "triage"', 'name = "a\\u001b[31m"', "line 2: study.name: "),
        ('name = "Agency"', 'name = "a\\u202eb"', "line 19: institutions.1.name: "),
        ('name = "triage"\n', "", "line 1: study.name: is missing"),
        ('[model]\nbase = "somewhere/bert"\n', "", "model: is missing"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_its_line(tmp_path, change, to, problem):
    assert change in FILE
    found = problems(tmp_path, FILE.replace(change, to))
    assert any(line.startswith(problem) for line in found), found
    with pytest.raises(StudyError, match="is not a valid study"):
        studies.load(tmp_path / "study.toml")


def test_all_mistakes_are_named_at_once_in_order(tmp_path):
    text = FILE.replace("batch_size = 50", "batch_size = 0\nrounds = 0").replace(
        'name = "triage"', 'nam = "triage"'
    )
    found = problems(tmp_path, text)
    assert [line.split(":")[0] for line in found] == ["line 1", "line 2", "line 11", "line 12"]


def test_without_dp_the_batch_may_be_anything(tmp_path):
    text = (
        FILE.replace("batch_size = 50", "batch_size = 5000") + '[privacy]\nmechanism = "none"\n'
    )
    assert not studies.load(write(tmp_path, text)).is_private


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[study\n", "line 1: not TOML"), (b"a = 1\na = 2\n", "line 2: not TOML"), (b"\xff", "cannot be read")],
)  # fmt: skip
def test_a_file_that_is_not_toml(tmp_path, content, reason):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=reason):
        studies.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StudyError, match="no study file") as caught:
        studies.load(tmp_path / "study.toml")
    assert "study new" in caught.value.advice
    with pytest.raises(StudyError, match="cannot be read"):
        studies.load(tmp_path)


def test_the_template_is_a_valid_study():
    template = Path(studies.__file__).parent / "study_template.toml"
    assert len(studies.load(template).institutions) == 2


# What follows from it


def test_sampling_rate_and_steps_are_of_public_numbers():
    study = a_study(training={"rounds": 20, "local_steps": 3, "batch_size": 50})
    assert study.sample_rate("Clinic") == 0.05
    assert study.total_steps == 60
    with pytest.raises(StudyError, match="Nobody does not take part"):
        study.sample_rate("Nobody")


def test_other_institutions_are_checked_again():
    study = a_study()
    large = study.institutions[0].model_copy(update={"name": "Large", "records": 10**9})
    with pytest.raises(StudyError, match="records of Large"):
        study.with_institutions((large,))
    small = study.institutions[0].model_copy(update={"name": "Small", "records": 10})
    assert study.with_institutions((small,)).expected_batch_size("Small") == 10
    assert study.with_institutions((small,)).sample_rate("Small") == 1
    alone = study.with_institutions(())
    assert alone.institutions == ()
    assert alone.digest != study.digest


# What cannot work together is refused, and why


@pytest.mark.parametrize(
    ("aggregation", "why"),
    [
        ({"method": "fedavg", "robust": "median"}, "need not be near in BA"),
        ({"method": "flexlora", "robust": "krum"}, "need not be near in BA"),
        ({"method": "fedsvd", "server_optimizer": "adam"}, "of another basis"),
        *(
            choice
            for method in ("flexlora", "fedex-lora", "flora", "hetlora")
            for choice in (
                ({"method": method, "robust": "median"}, "need not be near in BA"),
                ({"method": method, "server_optimizer": "momentum"}, "of another basis"),
                ({"method": method, "clip_norm": 1.0}, "would not reach them"),
            )
        ),
        ({"robust": "norm-bounding"}, "`norm_bound`"),
        ({"robust": "median", "norm_bound": 1.0}, "`norm_bound`"),
        ({"server_learning_rate": 0.5}, "needs a `server_optimizer`"),
        ({"robust": "median"}, "needs 3 updates in every round to bear 1 bad sites"),
        ({"robust": "krum", "bad_sites": 2}, "needs 7 updates in every round to bear 2 bad"),
    ],
)
def test_aggregations_that_cannot_work_are_refused(aggregation, why):
    with pytest.raises(ValueError, match=why):
        a_study(aggregation=aggregation)


def test_an_aggregation_that_cannot_work_is_shown_where_it_stands(tmp_path):
    text = FILE + '\n[aggregation]\nmethod = "fedavg"\nrobust = "krum"\n'
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("line 23: aggregation: `robust` needs a method")


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"adapter": {"start_sha256": "0" * 64}}, "needs `start`"),
        (
            {"adapter": {"start": "warm-up"}, "personalisation": {"method": "private-head"}},
            "`adapter.start` cannot go with",
        ),
    ],
)
def test_a_start_that_would_begin_nothing_or_half_is_refused(sections, why):
    with pytest.raises(ValueError, match=why):
        a_study(**sections)


LEAVE_ONE_OUT = {"contributions": "leave-one-out", "data": "public.csv"}


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"evaluation": {"contributions": "leave-one-out"}}, "needs a public test set"),
        ({"personalisation": {"method": "private-head"}}, "cannot go with `personalisation"),
        (
            {
                "personalisation": {"method": "fedsa-lora"},
                "aggregation": {"method": "fedavg"},
            },
            "what is shared cannot predict",
        ),
        (
            {"aggregation": {"clip_norm": 1.0, "noise_multiplier": 0.5}},
            "none of the noise that is to protect them",
        ),
        ({"institutions": ["A"]}, "needs at least 2 institutions"),
        (
            {
                "institutions": ["A", "B", "C"],
                "aggregation": {"robust": "median"},
                "federation": {"quorum": 3},
            },
            "needs at least 4 institutions",
        ),
    ],
)
def test_contributions_that_cannot_be_told_are_refused(sections, why):
    sections = {"evaluation": LEAVE_ONE_OUT, **sections}
    one = {"sector": "academia", "records": 1000}
    named = [{"name": n, **one} for n in sections.pop("institutions", ["A", "B"])]
    with pytest.raises(ValueError, match=why):
        a_study(institutions=named, **sections)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"aggregation": {"clip_norm": 1.0}},
        {"personalisation": {"method": "fine-tune", "steps": 5}},
        {"institutions": []},
    ],
)
def test_contributions_go_with_all_else(sections):
    one = {"sector": "academia", "records": 1000}
    sections = {"institutions": [{"name": n, **one} for n in "AB"], **sections}
    assert a_study(evaluation=LEAVE_ONE_OUT, **sections).evaluation.every == 1


def of_ranks(method, *ranks, r=8):
    institutions = [
        {"name": f"Site {n}", "sector": "academia", "records": 1000, **({"r": k} if k else {})}
        for n, k in enumerate(ranks)
    ]
    return a_study(adapter={"r": r}, aggregation={"method": method}, institutions=institutions)


@pytest.mark.parametrize("method", ["flora", "flexlora", "hetlora"])
def test_institutions_may_have_lower_ranks_where_the_method_says_how_they_meet(method):
    study = of_ranks(method, 2, 8, None)
    assert [study.rank(one.name) for one in study.institutions] == [2, 8, 8]
    with pytest.raises(
        ValueError, match=r"Site 0 has rank 9, but `adapter\.r`, the highest, is 8"
    ):
        of_ranks(method, 9, 8)


@pytest.mark.parametrize("method", ["ffa-lora", "fedavg", "fedsvd", "rolora", "fedex-lora"])
def test_elsewhere_all_have_the_same_rank(method):
    of_ranks(method, 8, None)
    with pytest.raises(ValueError, match="needs the same rank at all institutions"):
        of_ranks(method, 8, 4)


def test_what_is_added_to_the_frozen_weights_is_trained_by_nobody():
    for part in ("residual_A", "residual_B"):
        assert not of_ranks("flora", 8).trains(f"x.{part}.weight", 1)


def test_a_quorum_that_is_large_enough_makes_a_robust_rule_possible():
    names = [{"name": f"Site {n}", "sector": "academia", "records": 1000} for n in range(6)]
    for quorum in (4, 5):
        choices = {
            "aggregation": {"robust": "multi-krum", "method": "fedsvd"},
            "federation": {"quorum": quorum},
            "institutions": names,
        }
        if quorum == 5:
            assert a_study(**choices).aggregation.updates_needed == 5
        else:
            with pytest.raises(ValueError, match=r"`federation\.quorum` is 4"):
                a_study(**choices)


PERSONS = (
    FILE.replace(
        'labels = ["mild", "severe"]', 'labels = ["mild", "severe"]\nperson_column = "who"'
    )
    .replace("[training]", '[privacy]\nunit = "person"\nmax_records_per_person = 2\n[training]')
    .replace("records = 2000", "records = 2000\npersons = 1500")
)


@pytest.mark.parametrize(
    ("change", "to", "problem"),
    [
        ("", "", '`privacy.unit = "person"` needs `persons of Clinic`'),
        ("records = 1000", "records = 1000\npersons = 2000", "more persons than records"),
        ("records = 1000", "records = 1000\npersons = 0", "persons: "),
        ('unit = "person"', 'unit = "person"\nmechanism = "none"', "needs a mechanism"),
        ("max_records_per_person = 2", "", "needs `privacy.max_records_per_person`"),
        (
            "max_records_per_person = 2",
            "max_records_per_person = 0",
            "max_records_per_person: ",
        ),
    ],
)
def test_a_promise_to_persons_must_be_whole(tmp_path, change, to, problem):
    text = PERSONS.replace(change, to, 1) if change else PERSONS
    found = problems(tmp_path, text)
    assert any(problem in line for line in found), found
