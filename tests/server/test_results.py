"""A run's results for programs and for people."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console

from fedpact.common import accounting
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.server.contributions import Contribution
from fedpact.server.diagnostics import Diagnosis
from fedpact.server.report import RunReport, draw, tables
from fedpact.server.results import RunResult, overview
from fedpact.server.round_needs import Answer, ClassCounts
from fedpact.server.runs import RoundView, RunView
from support.round_fakes import study_among

STUDY = study_among("A", "B", privacy={"target_epsilon": 4.0, "target_delta": 1e-6})


def updated(epsilon, bytes_in=1000, **more):
    return Answer("updated", "", bytes_in, epsilon, 1.0, "d" * 64, **more)


VIEW = RunView(
    id="r1",
    study=STUDY,
    status="completed",
    message="",
    flower_run="7",
    process=None,
    adapter="/somewhere/r1",
    created_at=datetime.now(UTC),
    rounds=(
        RoundView(
            1, 2.0, 0.9, 0.5, {"A": updated(1.0), "B": updated(1.25)}, Diagnosis(0.125, -0.5)
        ),
        RoundView(2, 3.0, 0.8, 0.625, {"A": updated(2.0), "B": Answer("late", "No reply.", 0)}),
        RoundView(3, 4.0, 0.7, 0.75, {"A": updated(3.0, 1500)}),
    ),
)


def shown(view: RunView, **how) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(overview(view, **how))
    return console.file.getvalue()


def test_the_result_says_what_was_agreed_what_came_out_and_what_it_cost():
    result = RunResult.of(VIEW)
    assert (result.run, result.study, result.study_digest) == ("r1", "triage", STUDY.digest)
    assert (result.status, result.adapter, result.unit) == (
        "completed",
        "/somewhere/r1",
        "record",
    )
    assert result.seconds == 9.0
    assert [(r.round, r.loss, r.accuracy, r.seconds, r.sites) for r in result.rounds] == [
        (1, 0.9, 0.5, 2.0, 2),
        (2, 0.8, 0.625, 3.0, 1),
        (3, 0.7, 0.75, 4.0, 1),
    ]
    assert [(r.averaging_loss, r.mean_cosine) for r in result.rounds] == [
        (0.125, -0.5),
        (None, None),
        (None, None),
    ]
    # B's ε is what it last said: a round that it missed does not take it back.
    assert [(s.name, s.epsilon, s.delta, s.bytes_out) for s in result.sites] == [
        ("A", 3.0, 1e-6, 3500),
        ("B", 1.25, 1e-6, 1000),
    ]


def test_the_result_is_json():
    result = RunResult.of(VIEW)
    assert RunResult.model_validate_json(result.model_dump_json()) == result
    assert set(json.loads(result.model_dump_json())) >= {
        "rounds",
        "sites",
        "seconds",
        "adapter",
    }


def test_a_run_that_has_only_begun_has_a_result_too():
    begun = replace(
        VIEW,
        status="running",
        adapter="",
        rounds=(RoundView(1, None, None, None, {"A": Answer("asked"), "B": Answer("asked")}),),
    )
    result = RunResult.of(begun)
    assert (result.seconds, result.rounds[0].sites) == (0.0, 0)
    assert [site.epsilon for site in result.sites] == [None, None]
    assert "training" in shown(begun)
    assert "waiting" in shown(replace(begun, status="waiting", rounds=()))


def test_every_epsilon_stands_with_its_delta_its_unit_and_its_neighbours():
    table = shown(VIEW)
    assert "ε at δ = 1e-06, for adding or removing one record" in table
    assert "3.000" in table
    assert "1.250" in table


def test_what_each_site_does_is_said():
    answers = {"A": updated(1.0, loss=0.5, accuracy=0.875), "B": Answer("late", "No reply.")}
    table = shown(replace(VIEW, rounds=(RoundView(1, 1.0, None, None, answers),)))
    assert "accuracy 0.875 NOT PRIVATE" in table
    private = study_among("A", "B", evaluation={"site_metrics": "private"})
    view = replace(VIEW, study=private, rounds=(RoundView(1, 1.0, None, None, answers),))
    assert "accuracy 0.875 private, noisy" in shown(view)
    assert "late: No reply." in table
    assert "away" in shown(VIEW)  # B was not asked in the last round
    assert "/somewhere/r1" in table


def test_what_sites_count_by_class_is_summed_over_the_newest_round_that_has_it():
    evaluation = {"site_metrics": "private", "per_class": True}
    study = study_among("A", "B", evaluation=evaluation)
    old = {"A": updated(1.0, classes=ClassCounts((9.0, 9.0), (9.0, 9.0), 3.0))}
    new = {
        "A": updated(1.0, classes=ClassCounts((10.0, -0.5), (2.0, 8.0), 3.0)),
        "B": updated(1.0, classes=ClassCounts((20.0, 1.0), (1.0, 6.5), 4.0)),
    }
    rounds = [
        RoundView(n, 1.0, None, None, answers) for n, answers in enumerate((old, new, {}), 1)
    ]
    view = replace(VIEW, study=study, rounds=tuple(rounds))
    first, second = RunResult.of(view).classes
    assert [one.label for one in (first, second)] == list(study.task.labels)
    assert (first.right, first.total) == (30.0, 33.0)
    assert (second.right, second.total) == (0.5, 15.0)
    assert first.right_noise == pytest.approx(5.0)
    assert first.total_noise == pytest.approx(5.0 * 2**0.5)
    table = shown(view)
    assert "right ±5.0" in table
    assert "records ±7.1" in table
    assert "private, noisy" in table
    assert RunResult.of(VIEW).classes == []


def test_without_privacy_it_says_so_and_shows_no_epsilon():
    study = study_among("A", "B", privacy={"mechanism": "none"})
    answers = {"A": updated(None), "B": updated(None)}
    view = replace(VIEW, study=study, rounds=(RoundView(1, 1.0, None, None, answers),))
    assert shown(view).count("NOT PRIVATE") == 2
    assert "for adding or removing" not in shown(view)
    assert [site.epsilon for site in RunResult.of(view).sites] == [None, None]


@pytest.mark.parametrize("last", [1, 2])
def test_only_the_last_rounds_are_shown_where_asked(last):
    table = shown(VIEW, last=last)
    assert [f"{n}/3" in table for n in (1, 2, 3)] == [n > 3 - last for n in (1, 2, 3)]


def test_why_a_run_failed_is_shown():
    failed = replace(VIEW, status="failed", message="Round 3 has 1 updates.")
    assert "Round 3 has 1 updates." in shown(failed)
    assert RunResult.of(failed).message == "Round 3 has 1 updates."


def test_the_coordinators_noise_has_an_epsilon_of_its_own():
    assert RunResult.of(VIEW).central is None
    study = study_among("A", "B", aggregation={"clip_norm": 1.0, "noise_multiplier": 4.0})
    found = RunResult.of(replace(VIEW, study=study)).central
    # Three rounds of a Gaussian with the noise 4 are one with 4 / sqrt(3).
    expected = accounting.epsilon([SubsampledGaussian(4 / 3**0.5, 1.0, 1)], 1e-5)
    assert found.epsilon == pytest.approx(expected, rel=0.02)
    assert (found.unit, found.delta) == ("institution", 1e-5)
    text = shown(replace(VIEW, study=study))
    assert "adding or removing one institution, by the coordinator's noise" in text
    assert "not the coordinator" in text


# Rounds that were not measured, and what updates were worth

WORTH = {"A": Contribution(0.015625, 0.25), "B": Contribution(-0.03125, None)}
SPARSE = replace(
    VIEW,
    rounds=(
        replace(VIEW.rounds[0], loss=None, accuracy=None),
        replace(VIEW.rounds[1], contributions=WORTH),
        replace(VIEW.rounds[2], loss=None, accuracy=None),
        replace(VIEW.rounds[2], number=4, contributions={"A": Contribution(0.046875, 0.5)}),
    ),
)


def reported(view: RunView) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(tables(RunReport.of(view, None)))
    return console.file.getvalue()


def row(table: str, first: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"│ {first} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_rounds_that_were_not_measured_are_shown_without_numbers():
    result = RunResult.of(SPARSE)
    assert [(r.loss, r.accuracy, r.metrics) for r in result.rounds] == [
        (None, None, {}),
        (0.8, 0.625, {"accuracy": 0.625}),
        (None, None, {}),
        (0.7, 0.75, {"accuracy": 0.75}),
    ]
    assert RunResult.model_validate_json(result.model_dump_json()) == result
    assert row(shown(SPARSE), "  1/3")[1:3] == ["", ""]
    assert row(shown(SPARSE), "  2/3")[1:3] == ["0.8000", "0.6250"]
    assert row(reported(SPARSE), "public test set")[1:] == ["0.625", "0.750"]


def test_the_newest_round_that_was_measured_is_shown_with_the_last_ones():
    rounds = [replace(VIEW.rounds[0], number=n, loss=None, accuracy=None) for n in range(1, 9)]
    rounds[1] = replace(rounds[1], loss=0.5, accuracy=0.5)
    rounds[3] = replace(rounds[3], loss=0.25, accuracy=0.875)
    table = shown(replace(VIEW, rounds=tuple(rounds)), last=2)
    assert [n for n in range(1, 9) if f"{n}/3" in table] == [4, 7, 8]
    table = shown(replace(VIEW, rounds=tuple(rounds)), last=5)
    assert [n for n in range(1, 9) if f"{n}/3" in table] == [4, 5, 6, 7, 8]


def test_a_run_that_was_never_measured_is_reported_too():
    rounds = tuple(replace(r, loss=None, accuracy=None) for r in VIEW.rounds)
    assert "public test set" not in reported(replace(VIEW, rounds=rounds))
    assert "1/3" not in shown(replace(VIEW, rounds=rounds), last=2)


def test_what_updates_were_worth_is_said_beside_the_sites():
    assert "contribution" not in shown(VIEW)
    table = shown(SPARSE)
    said = " ".join(table.split())
    assert "accuracy after round 4 less what it would be without the site's update" in said
    assert row(table, "A")[-1] == "+0.0469"
    assert row(table, "B")[-1] == ""
    assert row(shown(replace(SPARSE, rounds=SPARSE.rounds[:3])), "B")[-1] == "-0.0312"
    found = RunResult.of(SPARSE).rounds[1].contributions
    assert {name: (one.score, one.loss) for name, one in found.items()} == {
        "A": (0.015625, 0.25),
        "B": (-0.03125, None),
    }


def test_the_report_says_what_updates_were_worth_on_average():
    report = RunReport.of(SPARSE, None)
    assert report.sites[0].contributions == (None, 0.015625, None, 0.046875)
    assert report.sites[0].loss_contributions == (None, 0.25, None, 0.5)
    assert "worth" not in reported(VIEW)
    table = reported(SPARSE)
    assert row(table, "A") == ["A", "+0.0312", "+0.3750", "2"]
    assert row(table, "B") == ["B", "-0.0312", "", "1"]


def test_a_course_with_rounds_missing_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    for name, view in (("some", SPARSE), ("none", replace(VIEW, rounds=()))):
        draw(RunReport.of(view, None), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
