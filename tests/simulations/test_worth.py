"""Was it worth joining? Alone, shared and personal, for every site of a simulation."""

import json
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedpact.common.errors import UsageError
from fedpact.common.worth import read_worth
from fedpact.simulations.cli import app
from fedpact.simulations.simulate import Simulation, simulate
from support.tiny_bert import LABELS, some_rows

SITES = ("Nord", "Ost")


def write(path, rows):
    path.write_text(
        "\n".join(["text,label,site", *(",".join(row) for row in rows)]) + "\n",
        encoding="utf-8",
    )
    return path


def contrary(rows):
    """The same texts with the other label: what one site learns is wrong at the other."""
    return [(text, LABELS[1 - LABELS.index(label)]) for text, label in rows]


@pytest.fixture
def run(tiny, tmp_path):
    """Simulate two sites that see the same words with opposite labels; the larger one wins."""

    def simulated(method="fedavg", **sections):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        at = {"Nord": some_rows(200), "Ost": contrary(some_rows(60, 1))}
        data = write(tmp_path / "data.csv", [(*r, s) for s in SITES for r in at[s]])
        tests = {"Nord": some_rows(40, 2), "Ost": contrary(some_rows(40, 3))}
        test = write(tmp_path / "test.csv", [(*r, s) for s in SITES for r in tests[s]])
        study = tiny.write_study(
            tmp_path / "study.toml",
            training={"rounds": 5, "local_steps": 15},
            privacy={"mechanism": "none"},
            aggregation={"method": method},
            institutions=[],
            **sections,
        )
        asked = Simulation(
            study, data=data, partition="column:site", folder=folder, alone="plain", test=test
        )
        simulate(asked, Console(file=StringIO()))
        return folder

    return simulated


def test_the_losers_are_named_and_a_personal_head_helps_them(run):
    worth = read_worth(run())
    by_name = {site.site: site for site in worth.sites}
    assert (worth.losers[0], worth.alone) == ("Ost", "without noise")
    loser = by_name["Ost"].own
    assert (loser.records, loser.personal, loser.verdict) == (40, None, "lost")
    assert loser.alone.score > 0.9
    assert loser.shared.score < 0.5
    assert loser.gain == pytest.approx(loser.shared.score - loser.alone.score)
    assert by_name["Nord"].own.gain > loser.gain
    assert by_name["Ost"].public.records == 80

    personal = read_worth(run(personalisation={"method": "private-head"}))
    for site in personal.sites:
        assert site.own.shared is None
        assert site.own.personal.score > 0.8


@pytest.mark.parametrize(
    ("method", "personalisation", "above"),
    [
        ("fedavg", {"method": "ditto", "ditto_lambda": 0.01}, 0.8),
        ("fedavg", {"method": "fine-tune", "steps": 30}, 0.8),
        ("ffa-lora", {"method": "interpolate", "steps": 60, "learning_rate": 0.05}, 0.7),
    ],
)
def test_a_second_adapter_is_compared_beside_the_shared_one(
    run, method, personalisation, above
):
    worth = read_worth(run(method, personalisation=personalisation))
    loser = next(site for site in worth.sites if site.site == "Ost")
    assert loser.own.personal.score > above
    assert loser.own.shared.score < 0.5
    chosen = {site.share_of_shared for site in worth.sites}
    assert chosen <= ({0, 0.5, 1} if personalisation["method"] == "interpolate" else {None})


def test_run_report_shows_and_draws_it(run, tmp_path):
    folder, plot = run(), tmp_path / "worth.png"
    asked = ["run", "report", "--simulation", str(folder)]
    printed = CliRunner().invoke(app, [*asked, "--plot", str(plot)])
    assert printed.exit_code == 0, printed.output
    assert "Lower than alone: Ost" in " ".join(printed.output.split())
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(CliRunner().invoke(app, [*asked, "--format", "json"]).output)
    assert found["worth"]["losers"][0] == "Ost"
    assert found["public"] == [None] * 5


def test_alone_has_the_coordinators_optimiser_too(tiny, tmp_path):
    """A federation of one learns what its one site would have learned alone."""
    data = write(tmp_path / "data.csv", [(*row, "Nord") for row in some_rows(100)])
    test = write(tmp_path / "test.csv", [(*row, "Nord") for row in some_rows(100, 2)])
    study = tiny.write_study(
        tmp_path / "study.toml",
        training={"rounds": 12, "local_steps": 1, "optimizer": "sgd", "learning_rate": 0.01},
        privacy={"mechanism": "none"},
        aggregation={"server_optimizer": "adam", "server_learning_rate": 0.1},
        institutions=[],
    )
    asked = Simulation(
        study, data=data, sites=1, folder=tmp_path / "run", alone="plain", test=test
    )
    simulate(asked, Console(file=StringIO()))
    (site,) = read_worth(tmp_path / "run").sites
    assert site.public.alone.loss == pytest.approx(site.public.shared.loss, rel=1e-5)
    assert site.public.alone.loss < 0.6  # so small a learning rate alone would leave it at 0.69


def test_alone_begins_with_what_the_study_begins_with(tiny, tmp_path):
    data = write(tmp_path / "data.csv", [(*row, "Nord") for row in some_rows(100)])
    test = write(tmp_path / "test.csv", [(*row, "Nord") for row in some_rows(100, 2)])
    plain = {"privacy": {"mechanism": "none"}, "institutions": []}

    def simulated(name, **sections):
        study = tiny.write_study(tmp_path / "study.toml", **plain, **sections)
        asked = Simulation(
            study, data=data, sites=1, folder=tmp_path / name, alone="plain", test=test
        )
        simulate(asked, Console(file=StringIO()))
        (site,) = read_worth(tmp_path / name).sites
        return site.public

    learned = simulated("public", training={"rounds": 1, "local_steps": 30}).shared.loss
    (start,) = (
        path.parent for path in (tmp_path / "public").glob("artifacts/*/adapter_*.json")
    )
    hardly = {"rounds": 1, "local_steps": 1, "learning_rate": 1e-6}
    found = simulated(
        "run", training=hardly, adapter={"start": str(start.relative_to(tmp_path))}
    )
    assert found.alone.loss == pytest.approx(learned, abs=1e-3)
    assert found.alone.loss < 0.6


def test_a_folder_without_a_simulation_is_said(tmp_path):
    found = CliRunner().invoke(app, ["run", "report", "--simulation", str(tmp_path)])
    assert isinstance(found.exception, UsageError)


def test_without_test_records_there_is_nothing_to_measure_on(tiny, tmp_path):
    data = write(tmp_path / "data.csv", [(*row, "Nord") for row in some_rows(60)])
    study = tiny.write_study(tmp_path / "study.toml", training={"rounds": 1}, institutions=[])
    asked = Simulation(study, data=data, sites=1, folder=tmp_path / "run", alone="plain")
    with pytest.raises(UsageError, match="nothing to measure on"):
        simulate(asked, Console(file=StringIO()))
