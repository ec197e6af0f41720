"""A site that is killed anywhere between request and reply has never spent too little."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

from fedpact.client.agreements import Agreements
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.tables import DepartureRow, reading
from fedpact.client.workbench import Workbench
from fedpact.common import accounting, identity
from fedpact.common import model as models
from fedpact.common.database import sqlite_url
from fedpact.common.mechanism import Mechanism, SubsampledGaussian
from fedpact.common.planned import plan, plan_metrics
from support.faults import DELTA
from support.site_factory import INSTITUTION, update_request
from support.tiny_bert import write_data


def happened(record: Path) -> list[tuple[str, str]]:
    """What one attempt wrote down, in order."""
    return [tuple(json.loads(line)) for line in record.read_text(encoding="utf-8").splitlines()]


def computed(attempt: list[tuple[str, str]], training, release) -> float:
    """ε of what one attempt had computed, or had begun to, when it ended."""
    ran: list[Mechanism] = [release] * sum(what == "metrics" for what, _ in attempt)
    steps = sum(what == "step" for what, _ in attempt)
    ran.append(SubsampledGaussian(training.noise_multiplier, training.sample_rate, steps))
    return accounting.epsilon(ran, DELTA)


@pytest.fixture
def work(tmp_path, tiny):
    """A home with a data set and a request in front of it, and the study that it is for."""
    study = tiny.study(evaluation={"site_metrics": "private", "validation_fraction": 0.3})
    home = ClientHome(tmp_path / "home")
    engine = home.open_database()
    home.policy.write_text("allow_model_folders = true\n", encoding="utf-8")
    Datasets(engine).add("notes", write_data(tmp_path / "notes.csv"))
    Agreements(engine).decide(identity.new_signing_key(), INSTITUTION, study, "approve")
    engine.dispose()
    initial = models.initial_weights(Workbench().model(study).module, study.training.seed)
    request = update_request(study, initial)
    (tmp_path / "request.json").write_text(request.header, encoding="utf-8")
    (tmp_path / "request.bin").write_bytes(request.array)
    return tmp_path, study


def test_a_site_killed_at_any_point_has_spent_what_it_ran_and_releases_once(work):
    folder, study = work
    subprocess.run(
        [sys.executable, "-m", "support.faults", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    training, release = plan(study, INSTITUTION), plan_metrics(study)
    round_costs = accounting.epsilon([training, release], DELTA)
    homes = sorted(folder.glob("once-???")) + sorted(folder.glob("twice-???"))
    points = set()
    for home in homes:
        attempts = [happened(home.with_suffix(f".{number}")) for number in (1, 2, 3)]
        for before, after in pairwise(attempts):
            spent = float(dict(after)["spent"])
            assert computed(before, training, release) <= spent <= round_costs, home.name
        # Whatever was done twice, one thing has left, and the round has cost itself.
        entries = [entry for attempt in attempts for entry in attempt]
        sent = {entry for entry in entries if entry[0].startswith("sent")}
        with reading(create_engine(sqlite_url(home / "fedpact.db"))) as session:
            left = session.execute(select(DepartureRow.kind, DepartureRow.sha256)).all()
        assert sent == {(f"sent {kind}", sha256) for kind, sha256 in left}, home.name
        assert [what for what, _ in sent] == ["sent update"], home.name
        assert float(dict(attempts[2])["spent"]) == round_costs, home.name
        points |= {detail for what, detail in entries if what == "killed"}
    assert len(homes) > 50
    assert points >= {
        f"{when} {what}"
        for when in ("before", "after")
        for what in ("DefaultDialect.do_commit", "os.replace", "PrivateStep.apply", "sending")
    }
