"""The site's own rules: each is held, none can be mistyped, and the template says them all."""

import re
import tomllib

import pytest

from fedpact.client import policy as policies
from fedpact.client.policy import Policy, check
from fedpact.common.errors import PolicyError, StudyError
from support.site_factory import INSTITUTION, MODEL_SHA256, a_study

MANY = 1000


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
        ({"max_epsilon": 3.9}, {}, MANY, "ε = 4 is above the 3.9"),
        ({"max_delta": 1e-6}, {}, MANY, "δ = 1e-05 is above the 1e-06"),
        ({}, {}, 99, "fewer than the 100 records"),
        ({}, {"evaluation": {"site_metrics": True}}, MANY, "asks for metrics"),
        ({"studies": ()}, {}, MANY, "not among those allowed"),
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
        ({"max_epsilon": 4.0, "max_delta": 1e-5}, {}, MANY),
        ({}, {}, 100),
        ({"allow_site_metrics": True}, {"evaluation": {"site_metrics": True}}, MANY),
        ({"studies": (a_study().digest,)}, {}, MANY),
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
        ("quiet_hours = 1", "no rule quiet_hours .known are"),
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
    assert set(tomllib.loads(shown)) == set(Policy.model_fields)
    assert Policy.model_validate(tomllib.loads(shown)) == Policy()
