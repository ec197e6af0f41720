"""Which replies count."""

import pytest

from fedpact.common import wire
from fedpact.server.admission import Admitted, Expected, SetAside, admit
from fedpact.server.aggregation import trained_manifest
from support import liar
from support.round_fakes import lora_weights, study_among
from support.site_factory import update_request

STUDY = study_among("A")
ADAPTER = lora_weights()
REQUEST = update_request(STUDY, ADAPTER)


def expected(*, site_metrics: str = "none", classes: int = 0) -> Expected:
    trained = trained_manifest(STUDY, ADAPTER.manifest, 1)
    return Expected(
        "r1", 1, STUDY.digest, trained, site_metrics, steps=1, epsilon=8.0, classes=classes
    )


def test_an_honest_update_counts():
    outcome = admit(liar.honest(2.0)(REQUEST), expected())
    assert isinstance(outcome, Admitted)
    assert outcome.header.round == 1
    assert (outcome.change.flat == 2.0).all()


REASONS = {
    "not_a_number": "not finite",
    "infinite": "not finite",
    "wrong_shape": "shape",
    "too_few_tensors": "shape",
    "frozen_tensors_too": "shape",
    "another_study": "another study's digest",
    "another_round": "for r1 round 2",
    "another_run": "for another round 1",
    "metrics_not_asked_for": "metrics",
    "garbage_header": "header is not valid",
    "unknown_field": "examples",
    "negative_epsilon": "epsilon",
    "truncated_array": "bytes",
    "altered_array": "SHA-256",
    "a_pickle": "bytes",
    "the_request_itself": "not an update",
    "nothing": "header is not valid",
}


@pytest.mark.parametrize("lie", liar.REJECTED, ids=lambda lie: lie.__name__)
def test_a_lie_is_set_aside_and_named(lie):
    outcome = admit(lie(REQUEST), expected())
    assert isinstance(outcome, SetAside)
    assert outcome.state == "rejected"
    assert REASONS[lie.__name__] in outcome.reason


def test_a_refusal_is_the_sites_own():
    assert admit(liar.refusing(REQUEST), expected()) == SetAside("refused", "policy: Not here.")


def test_a_refusal_with_an_array_is_no_refusal():
    packet = liar.refusing(REQUEST)
    outcome = admit(wire.Packet(header=packet.header, array=b"1234"), expected())
    assert (outcome.state, "array" in outcome.reason) == ("rejected", True)


def test_metrics_count_where_the_study_asks_for_them():
    packet = liar.metrics_not_asked_for(REQUEST)
    outcome = admit(packet, expected(site_metrics="raw"))
    assert isinstance(outcome, Admitted)
    assert outcome.header.metrics == wire.SiteMetrics(kind="raw", loss=0.1, accuracy=0.9)


def test_raw_metrics_are_not_taken_for_private_ones():
    outcome = admit(liar.metrics_not_asked_for(REQUEST), expected(site_metrics="private"))
    assert isinstance(outcome, SetAside)
    assert "metrics" in outcome.reason


@pytest.mark.parametrize(("asked", "counts"), [(0, False), (2, True), (3, False)])
def test_counts_by_class_are_for_the_labels_of_the_study_or_the_update_is_not_taken(
    asked, counts
):
    outcome = admit(
        liar.counting_classes(REQUEST), expected(site_metrics="private", classes=asked)
    )
    assert isinstance(outcome, Admitted) == counts
    if not counts:
        assert "metrics" in outcome.reason
