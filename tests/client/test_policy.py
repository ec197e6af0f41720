"""The site's own rules: each is held, none can be mistyped, and the template says them all."""

import json
import re
import tomllib
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedpact.client import policy as policies
from fedpact.client.cli import client_app
from fedpact.client.policy import Policy
from fedpact.client.policy_check import check, check_hours, in_words
from fedpact.client.up import take_share
from fedpact.common.errors import PolicyError, StudyError
from support.site_factory import INSTITUTION, MODEL_SHA256, a_study

MANY = 1000
CLINIC = {"name": INSTITUTION, "sector": "academia", "records": MANY}
WITH_FIRM = {"institutions": [CLINIC, {"name": "Firm", "sector": "industry", "records": MANY}]}

TO_PERSONS = {
    "task": {"person_column": "who"},
    "privacy": {"unit": "person", "max_records_per_person": 4},
    "institutions": [CLINIC | {"persons": 200}],
}


def test_the_defaults_allow_a_private_study():
    check(Policy(), a_study(), INSTITUTION, MANY)


@pytest.mark.parametrize(
    ("policy", "sections", "records", "reason"),
    [
        ({"tasks": ()}, {}, MANY, "The task text-classification is not allowed"),
        ({"models": ("0" * 64,)}, {}, MANY, "is not among those allowed"),
        ({}, {"model": {"sha256": None}}, MANY, "does not name the SHA-256"),
        (
            {"require_model_sha256": False, "models": (MODEL_SHA256,)},
            {"model": {"sha256": None}},
            MANY,
            "does not name the SHA-256",
        ),
        ({}, {"privacy": {"mechanism": "none"}}, MANY, "no differential privacy"),
        ({"required_unit": "person"}, {}, MANY, "promises nothing to persons"),
        (
            {"required_unit": "person", "require_dp": False},
            {"privacy": {"mechanism": "none"}},
            MANY,
            "promises nothing to persons",
        ),
        ({"max_epsilon": 3.9}, {}, MANY, "ε = 4 is above the 3.9"),
        ({"max_delta": 1e-6}, {}, MANY, "δ = 1e-05 is above the 1e-06"),
        ({}, {}, 99, "fewer than the 100 records"),
        ({}, {"evaluation": {"site_metrics": "raw"}}, MANY, "asks for raw metrics"),
        ({"studies": ()}, {}, MANY, "not among those allowed"),
        ({"uses": ()}, {}, MANY, "for research is not allowed"),
        ({"uses": ("research",)}, {"study": {"use": "product"}}, MANY, "for product"),
        ({"sectors": ("government",)}, WITH_FIRM, MANY, "industry is not allowed here: Firm"),
        ({"institutions": ()}, WITH_FIRM, MANY, "with Firm is not allowed"),
        ({"institutions": ("Other",)}, WITH_FIRM, MANY, "with Firm is not allowed"),
        ({}, {"governance": {"recipients": ["Press"]}}, MANY, "would go to Press"),
        ({"max_epsilon_per_study": 3.9}, {}, MANY, "ε = 4 is above the 3.9"),
        ({}, {"model": {"base": "/srv/models/bert"}}, MANY, "is a folder"),
        ({}, {"model": {"base": "../bert"}}, MANY, "is a folder"),
        ({}, {"model": {"base": "~/bert"}}, MANY, "is a folder"),
        ({}, {"model": {"base": "a/b/c"}}, MANY, "is a folder"),
        ({}, {"model": {"base": "C:\\\\host\\share"}}, MANY, "is a folder"),
        ({"studies": ("0" * 64,)}, {}, MANY, "not among those allowed"),
    ],
)
def test_each_rule_refuses_in_one_sentence(policy, sections, records, reason):
    with pytest.raises(PolicyError, match=reason) as caught:
        check(Policy(**policy), a_study(**sections), INSTITUTION, records)
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("policy", "sections", "records"),
    [
        ({"models": (MODEL_SHA256,)}, {}, MANY),
        ({"require_model_sha256": False}, {"model": {"sha256": None}}, MANY),
        ({"require_dp": False}, {"privacy": {"mechanism": "none"}}, MANY),
        ({"required_unit": "person"}, TO_PERSONS, MANY),
        ({}, TO_PERSONS, MANY),
        ({"max_epsilon": 4.0, "max_delta": 1e-5}, {}, MANY),
        ({}, {}, 100),
        ({"allow_site_metrics": True}, {"evaluation": {"site_metrics": "raw"}}, MANY),
        ({}, {"evaluation": {"site_metrics": "private"}}, MANY),
        ({"studies": (a_study().digest,)}, {}, MANY),
        ({"sectors": (), "institutions": ()}, {}, MANY),
        ({"sectors": ("industry",), "institutions": ("Firm",)}, WITH_FIRM, MANY),
        ({}, WITH_FIRM | {"governance": {"recipients": ["Firm"]}}, MANY),
        ({"allow_outside_recipients": True}, {"governance": {"recipients": ["Press"]}}, MANY),
        ({"max_epsilon_per_study": 4.0}, {}, MANY),
        ({"models": (MODEL_SHA256,)}, {"model": {"base": "/srv/models/bert"}}, MANY),
        ({"allow_model_folders": True}, {"model": {"base": "/srv/models/bert"}}, MANY),
    ],
)
def test_each_rule_lets_through_what_it_allows(policy, sections, records):
    check(Policy(**policy), a_study(**sections), INSTITUTION, records)


def test_a_refusal_does_not_tell_how_many_records_there_are():
    with pytest.raises(PolicyError) as caught:
        check(Policy(minimum_records=5000), a_study(), INSTITUTION, 4321)
    assert "4321" not in str(caught.value)


def test_whoever_does_not_take_part_is_told():
    with pytest.raises(StudyError, match="Nobody does not take part"):
        check(Policy(), a_study(), "Nobody", MANY)


def test_without_a_file_the_defaults_hold(tmp_path):
    assert policies.load(tmp_path / "policy.toml") == Policy()


def test_a_file_is_read(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('max_epsilon = 2\nstudies = "any"\nminimum_records = 7\n')
    assert policies.load(path) == Policy(max_epsilon=2.0, minimum_records=7)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_epsilom = 1", "no rule max_epsilom .did you mean max_epsilon"),
        ("colour = 1", "no rule colour .known are"),
        ('quiet_hours = "25:00-06:00"', "quiet_hours"),
        ('quiet_hours = "06:00-06:00"', "end when they begin"),
        ("gpu_memory_fraction = 1.5", "gpu_memory_fraction"),
        ('uses = ["fun"]', "uses"),
        ("max_epsilon = 0", "max_epsilon: Input should be greater than 0"),
        ("max_epsilon = inf", "max_epsilon"),
        ("max_epsilon = nan", "max_epsilon"),
        ('models = ["abc"]', "models"),
        ('studies = "some"', "studies"),
        ("require_dp = 7", "require_dp"),
        ("max_epsilon = ", "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_a_file_that_is_not_right_stops_everything(tmp_path, text, reason):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=reason):
        policies.load(path)


def test_a_file_that_cannot_be_read_stops_everything(tmp_path):
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="cannot be read"):
        policies.load(tmp_path / "policy.toml")
    with pytest.raises(PolicyError, match="cannot be read"):
        policies.load(tmp_path)


def test_the_template_is_the_defaults_and_names_every_rule():
    text = policies.template()
    assert tomllib.loads(text) == {}
    shown = re.sub(r"^# (?=[a-z0-9_]+ = )", "", text, flags=re.MULTILINE)
    rules = tomllib.loads(shown)
    assert set(rules) == set(Policy.model_fields)
    # TOML cannot say "none": these are examples.
    examples = {name for name, value in Policy() if value is None}
    assert examples == {"max_epsilon_per_study", "quiet_hours", "cpu_threads"}
    defaults = {name: value for name, value in rules.items() if name not in examples}
    assert Policy.model_validate(defaults) == Policy()
    Policy.model_validate(rules)


@pytest.mark.parametrize(
    ("hours", "moment", "reopens"),
    [
        ("22:00-06:00", "2026-03-01T22:00", "2026-03-02T06:00+02:00"),
        ("22:00-06:00", "2026-03-01T05:59", "2026-03-01T06:00+02:00"),
        ("22:00-06:00", "2026-03-01T06:00", None),
        ("22:00-06:00", "2026-03-01T21:59", None),
        ("08:30-18:00", "2026-03-01T08:30", "2026-03-01T18:00+02:00"),
        ("08:30-18:00", "2026-03-01T18:00", None),
        ("08:30-18:00", "2026-03-01T08:29", None),
        (None, "2026-03-01T03:00", None),
    ],
)
def test_in_quiet_hours_nothing_begins_and_it_is_said_when_they_end(hours, moment, reopens):
    policy, now = Policy(quiet_hours=hours), datetime.fromisoformat(f"{moment}+02:00")
    if reopens is None:
        check_hours(policy, now)
        return
    with pytest.raises(PolicyError, match=re.escape(f"they end at {reopens}.")):
        check_hours(policy, now)


def test_a_policy_in_words_says_what_is_not_private():
    strict = in_words(Policy())
    assert not [sentence for sentence in strict if "NOT PRIVATE" in sentence]
    assert any("ε = 10 in its lifetime" in sentence for sentence in strict)
    (whom,) = (s for s in in_words(Policy(required_unit="person")) if "promise" in s)
    assert "must be to persons" in whom
    loose = in_words(Policy(require_dp=False, allow_site_metrics=True, uses=()))
    assert len([sentence for sentence in loose if "NOT PRIVATE" in sentence]) == 2
    assert any("for nothing." in sentence for sentence in loose)
    assert all(sentence.endswith(".") for sentence in (*strict, *loose))


def test_the_command_line_says_what_the_rules_mean(tmp_path):
    run = partial(CliRunner().invoke, client_app, catch_exceptions=False)
    (tmp_path / "policy.toml").write_text('max_epsilon = 3\nquiet_hours = "22:00-06:00"\n')
    said = run(["policy", "check", "--home", str(tmp_path)]).output
    assert "ε = 3 in its lifetime" in said
    assert "22:00-06:00" in said
    shown = run(["policy", "show", "--home", str(tmp_path), "--format", "json"]).output
    rules = json.loads(shown)
    assert set(rules) == set(Policy.model_fields)
    assert (rules["max_epsilon"], rules["uses"][0]) == (3.0, "research")
    assert "quiet_hours" in run(["policy", "show", "--home", str(tmp_path)]).output
    (tmp_path / "policy.toml").write_text("max_epsilom = 3\n")
    with pytest.raises(PolicyError, match="did you mean max_epsilon"):
        run(["policy", "check", "--home", str(tmp_path)])


def test_training_keeps_to_the_share_that_the_policy_gives():
    before = torch.get_num_threads()
    try:
        take_share(Policy(cpu_threads=2))
        assert torch.get_num_threads() == 2
        take_share(Policy())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_worked_examples_of_the_documentation_are_policies():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "write-your-policy.md"
    examples = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        assert Policy.model_validate(tomllib.loads(example)) != Policy()
