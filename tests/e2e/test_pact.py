"""The pact, for real: persons sign at their sites, a run waits for them, and ends with them."""

import json
import re

import pytest

from fedpact.common import base_models
from fedpact.common import study as studies
from support.federation import POLICY, Daemon, federation, fedpact, must
from support.processes import wait_for
from support.tiny_bert import write_data

pytestmark = pytest.mark.e2e

NAMES = ("Hospital", "Drug Maker", "Agency")
SECTORS = ("academia", "industry", "government")


@pytest.fixture(scope="module")
def fed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pact")
    data = {
        name: write_data(folder / f"{seed}.csv", seed=seed) for seed, name in enumerate(NAMES)
    }
    with federation(folder, data) as up:
        # At two of them a person decides.
        for name in NAMES[:2]:
            up.sites[name].policy.write_text(POLICY.replace("automatic", "person"))
        wait_for(lambda: up.online() == set(NAMES), "all sites are online", within=180)
        yield up


@pytest.fixture
def study_file(tiny, tmp_path):
    test_set = write_data(tmp_path / "public.csv", records=60, seed=99)
    return tiny.write_study(
        tmp_path / "study.toml",
        study={"name": "pact"},
        training={"rounds": 200, "local_steps": 20},
        federation={"quorum": 1, "deadline_seconds": 300.0},
        governance={"data_holders": 2},
        evaluation={"data": test_set.name, "sha256": base_models.file_digest(test_set)},
        institutions=[
            {"name": "Hospital", "sector": "academia", "records": 120},
            {"name": "Drug Maker", "sector": "industry", "records": 120},
            {"name": "Agency", "sector": "government", "records": 120},
        ],
    )


def test_a_run_waits_for_signatures_goes_on_without_who_withdraws_and_ends_by_its_rule(
    fed, study_file, tmp_path
):
    digest = studies.load(study_file).digest[:12]
    hub = ("--home", str(fed.home.folder))

    def at(name: str, *words: str) -> str:
        return must("client", *words, "--home", str(fed.sites[name].folder))

    hurried = fedpact("run", "start", str(study_file), *hub, "--no-wait")
    assert hurried.returncode == 19
    assert re.search(r"is proposed: it lacks 2 more of|1 more of", hurried.stderr)

    start = ("run", "start", str(study_file), *hub, "--format", "json")
    starting = Daemon(start, tmp_path / "start.log", {})
    starting.wait_until_it_says(f"fedpact client approve {digest}")
    assert starting.process.poll() is None
    at("Hospital", "approve", digest, "--yes")
    at("Drug Maker", "approve", digest, "--yes")
    assert starting.process.wait(60) == 0
    run = json.loads(starting.said.splitlines()[-1])["run"]
    wait_for(
        lambda: len(fed.standing(digest)["signed"]) == 3, "the third has signed", within=60
    )

    def asked_last() -> set[str]:
        view = fed.view(run)
        assert view.is_under_way, view.message
        return set(view.rounds[-1].answers) if view.rounds else set()

    wait_for(lambda: asked_last() == set(NAMES), "all three train", within=120)
    at("Hospital", "withdraw", digest, "--why", "Our ethics board said no.")
    left = len(fed.view(run).rounds)
    wait_for(lambda: asked_last() == {"Drug Maker", "Agency"}, "two go on", within=60)
    wait_for(lambda: len(fed.view(run).rounds) > left + 2, "rounds go on", within=60)
    spent = [r.round for r in fed.reservations("Hospital") if r.run == run]
    assert max(spent) <= left

    at("Drug Maker", "withdraw", digest)
    result = fed.result(run)
    assert result["status"] == "stopped"
    assert "Hospital withdrew (Our ethics board said no.)" in result["message"]
    assert fed.standing(digest)["state"] == "withdrawn"
    assert all(r.seconds is not None for r in fed.view(run).rounds)
    again = fedpact("run", "start", str(study_file), *hub)
    assert again.returncode == 19
    assert "Drug Maker withdrew" in again.stderr
