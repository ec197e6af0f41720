"""A whole federation, for real: processes, TLS, SuperLink, DP; and what kills parts of it.

The model is tiny, so that what takes time is what is tested. Whatever is waited for is looked
at, never slept for.
"""

import json
import os
import re
import signal
import socket
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from sqlalchemy import select
from transformers import AutoModelForSequenceClassification

from fedpact.client.tables import DepartureRow, reading
from fedpact.common import base_models, tabular, tasks
from fedpact.common import study as studies
from fedpact.common.adapter import Weights
from fedpact.common.evaluation import evaluate
from fedpact.server.home import ServerHome, renew
from fedpact.server.superlink import _descendants
from support.federation import Federation, federation, fedpact, marked, must
from support.processes import free_ports, is_alive, wait_for
from support.tiny_bert import write_data

pytestmark = pytest.mark.e2e

NAMES = ("Universität Ärzte", "Drug Maker", "Agency")
INSTITUTIONS = [
    {"name": name, "sector": sector, "records": 120}
    for name, sector in zip(NAMES, ("academia", "industry", "government"), strict=True)
]
# More rounds than anybody waits for; and such whose every round can be hit in the middle.
LONG = {"training": {"rounds": 200, "local_steps": 40}}
LONG_ROUNDS = {"training": {"rounds": 100, "local_steps": 200}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Federation:
    folder = tmp_path_factory.mktemp("federation")
    data = {
        name: write_data(folder / f"data-{seed}.csv", seed=seed)
        for seed, name in enumerate(NAMES)
    }
    with federation(folder, data) as up:
        yield up


@pytest.fixture
def fed(shared) -> Federation:
    """The federation with all of it up, whatever the last test has killed."""
    shared.ensure_up()
    wait_for(lambda: shared.online() == set(NAMES), "all sites are online", within=180)
    return shared


@pytest.fixture
def study_file(tiny, tmp_path):
    """Writes a study of the federation, with a public test set beside it."""
    test_set = write_data(tmp_path / "public.csv", records=60, seed=99)

    def write(**sections):
        return tiny.write_study(
            tmp_path / "study.toml",
            **{
                "institutions": INSTITUTIONS,
                "federation": {"quorum": 2, "deadline_seconds": 300.0},
                "evaluation": {
                    "data": test_set.name,
                    "sha256": base_models.file_digest(test_set),
                },
                **sections,
            },
        )

    return write


def states(view, number: int) -> dict[str, str]:
    found = next((r for r in view.rounds if r.number == number), None)
    return {name: answer.state for name, answer in found.answers.items()} if found else {}


# A run


def test_a_run_from_token_to_adapter(fed, study_file):
    path = study_file()
    study = studies.load(path)
    run = fed.start_run(path)
    result = fed.result(run)
    assert (result["status"], result["message"]) == ("completed", "")
    assert result["study_digest"] == study.digest
    assert [(r["round"], r["sites"]) for r in result["rounds"]] == [(1, 3), (2, 3), (3, 3)]
    assert all(r["loss"] > 0 and 0 <= r["accuracy"] <= 1 for r in result["rounds"])
    assert [site["name"] for site in result["sites"]] == list(NAMES)
    for site in result["sites"]:
        assert 0.98 * 8 < site["epsilon"] <= 8
        # What the coordinator shows is what the site's own ledger says.
        assert site["epsilon"] == fed.spent(site["name"], run, 1e-5)
    for name, home in fed.sites.items():
        engine = home.open_database()
        with reading(engine) as session:
            left = session.scalars(select(DepartureRow).where(DepartureRow.run == run)).all()
        engine.dispose()
        assert [(d.round, d.kind) for d in left] == [
            (1, "update"),
            (2, "update"),
            (3, "update"),
        ]
        shown = next(site["bytes_out"] for site in result["sites"] if site["name"] == name)
        assert sum(departure.bytes for departure in left) == shown
    assert _accuracy(result["adapter"], study, path.parent) == result["rounds"][-1]["accuracy"]


def test_what_both_sides_wrote_down_fits_together_and_can_be_made_again(
    fed, study_file, tmp_path
):
    run = fed.start_run(study_file())
    fed.result(run)
    server, site = tmp_path / "coordinator.jsonl", tmp_path / "site.jsonl"
    home, artifacts = fed.sites[NAMES[0]], fed.home.artifacts

    def shown() -> int:
        """Heads that match; the sites show theirs soon after each round."""
        must("audit", "export", str(site), "--client", str(home.folder))
        must("audit", "export", str(server), "--client", str(home.folder), "--coordinators")
        told = must("audit", "verify", str(server), "--against", str(site), "--format", "json")
        return json.loads(told)["heads_matched"]

    wait_for(lambda: shown() >= 2, "heads are exchanged in both directions")
    again = must("audit", "verify", str(server), "--recompute", str(artifacts))
    assert "rounds aggregated again gave the adapters" in again

    lines = server.read_text().splitlines(keepends=True)
    server.write_text("".join(lines[:5] + lines[6:]))
    refused = fedpact("audit", "verify", str(server))
    assert (refused.returncode, "Entry 4 of coordinator" in refused.stderr) == (21, True)


def _accuracy(adapter, study, folder) -> float:
    base = AutoModelForSequenceClassification.from_pretrained(study.model.base, num_labels=2)
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    task, path = tasks.for_study(study), folder / study.evaluation.data
    tokenizer = base_models.load_tokenizer(study)
    rows = tabular.rows_for(tabular.read(path), task, path)
    records = task.encode(tokenizer, rows, study.training.max_length)
    cpu = torch.device("cpu")
    return evaluate(model, records, task, pad_id=tokenizer.pad_token_id, device=cpu).score


def test_what_sites_send_is_not_the_same_and_its_mean_is_what_the_adapter_becomes(
    fed, study_file
):
    run = fed.start_run(study_file(training={"rounds": 1}))
    fed.result(run)
    (kept,) = fed.view(run).rounds
    assert len({answer.digest for answer in kept.answers.values()}) == 3
    changes = []
    for home in fed.sites.values():
        packet = (home.outbox / f"{run}.1.packet").read_bytes()
        changes.append(np.frombuffer(packet.partition(b"\n")[2], dtype="<f4"))
    adapter = Weights.load(fed.home.artifacts / run / "adapter_model.safetensors")
    trained = [n for n in adapter.manifest.names if ".lora_A." not in n]
    # B and the head begin at zero, so that what they are is the mean of what was sent.
    np.testing.assert_allclose(adapter.select(trained).flat, np.mean(changes, 0), atol=1e-6)


def test_a_refusal_reaches_the_coordinator_with_its_reason(fed, study_file):
    # It signed when its policy still allowed what it forbids now.
    path = study_file(training={"rounds": 1})
    fed.agree(path)
    policy = fed.sites["Agency"].policy
    before = policy.read_text()
    policy.write_text("max_epsilon = 0.5\nallow_model_folders = true\n")
    try:
        result = fed.result(run := fed.start_run(path))
    finally:
        policy.write_text(before)
    assert (result["status"], result["rounds"][0]["sites"]) == ("completed", 2)
    answer = fed.view(run).rounds[0].answers["Agency"]
    assert (answer.state, "0.5 that is allowed here" in answer.reason) == ("refused", True)
    assert all(entry.run != run for entry in fed.reservations("Agency"))


# What is killed


def test_a_site_killed_in_a_round_has_spent_it_and_takes_part_again(fed, study_file):
    run = fed.start_run(study_file(**LONG_ROUNDS))

    def unsettled(name):
        found = [r for r in fed.reservations(name) if r.run == run and r.settled_at is None]
        return found[0] if found else None

    wait_for(lambda: len(fed.view(run).rounds) >= 2, "the second round has begun", within=180)
    wait_for(lambda: unsettled("Agency"), "the site trains", within=180)
    fed.daemons["Agency"].kill()
    hit = unsettled("Agency")
    assert hit is not None, "the round was over before the site was killed"
    fed.start_site("Agency")

    def takes_part_again():
        view = fed.view(run)
        assert view.is_under_way, view.message
        later = [states(view, r.number) for r in view.rounds if r.number > hit.round]
        return any(of.get("Agency") == "updated" for of in later)

    wait_for(takes_part_again, "the site takes part again", within=240)
    must("run", "stop", run, "--home", str(fed.home.folder))
    result = fed.result(run)
    assert result["status"] == "stopped"
    of_that_round = states(fed.view(run), hit.round)
    assert of_that_round.pop("Agency") == "lost"
    assert set(of_that_round.values()) == {"updated"}
    # Spent in full, once, and never settled: nobody can know what was computed.
    (standing,) = [
        r for r in fed.reservations("Agency") if r.run == run and r.round == hit.round
    ]
    assert (standing.id, standing.settled_at) == (hit.id, None)
    assert standing.counted_steps == 200
    stated = next(s["epsilon"] for s in result["sites"] if s["name"] == "Agency")
    assert stated == fed.spent("Agency", run, 1e-5)
    ledger = json.loads(
        must("client", "ledger", "--home", str(fed.sites["Agency"].folder), "--format", "json")
    )
    line = next(x for x in ledger["datasets"][0]["runs"] if x["run"] == run)
    assert line["unsettled"] == 1


def test_a_coordinator_killed_in_a_run_goes_on_with_it_and_nothing_is_spent_twice(
    fed, study_file
):
    rounds = 6
    run = fed.start_run(study_file(training={"rounds": rounds, "local_steps": 40}))
    wait_for(lambda: len(fed.view(run).rounds) >= 2, "the second round has begun", within=180)
    coordinator = fed.daemons["coordinator"].process
    family = _descendants(coordinator.pid)
    assert fed.view(run).process in family
    fed.daemons["coordinator"].kill()
    for pid in family:
        wait_for(lambda pid=pid: not is_alive(pid), f"process {pid} has ended")
    reached = fed.view(run).next_round
    assert reached <= rounds, "the run was over before the coordinator was killed"
    for name in NAMES:
        fed.daemons[name].wait_until_it_says("trying again in")
        assert fed.daemons[name].process.poll() is None

    said = fed.start_coordinator().said
    line = rf"Run {run} of tiny is interrupted: .* after {reached - 1} rounds\."
    assert re.search(line, said), said
    assert f"Run {run} of tiny goes on at round {reached}." in said
    # The sites come back by themselves, and are waited for.
    result = fed.result(run)
    assert (result["status"], result["message"]) == ("completed", "")
    assert [(r["round"], r["sites"]) for r in result["rounds"]] == [
        (number, 3) for number in range(1, rounds + 1)
    ]
    for site in result["sites"]:
        of_run = [r for r in fed.reservations(site["name"]) if r.run == run]
        assert sorted(r.round for r in of_run) == list(range(1, rounds + 1))
        assert 0.98 * 8 < site["epsilon"] <= 8
        assert site["epsilon"] == fed.spent(site["name"], run, 1e-5)


def test_a_run_of_a_coordinator_that_was_stopped_goes_on_when_someone_says_so(fed, study_file):
    run = fed.start_run(study_file(**LONG))
    wait_for(lambda: fed.view(run).rounds, "the first round has begun", within=180)
    assert fed.daemons["coordinator"].stop() == 0
    home = ("--home", str(fed.home.folder))
    watched = fedpact("run", "watch", run, *home)
    assert watched.returncode == 19, watched.stderr
    assert "interrupted" in watched.stderr
    fed.start_coordinator("--no-resume")
    assert fed.view(run).status == "interrupted"

    reached = fed.view(run).next_round
    assert f"goes on at round {reached} of 200" in must("run", "resume", run, *home)
    wait_for(lambda: fed.view(run).next_round > reached + 1, "rounds end", within=180)
    ends_with(
        fedpact("run", "resume", run, *home), 19, "is running: there is nothing to resume"
    )
    must("run", "stop", run, *home)
    assert fed.result(run)["status"] == "stopped"
    ends_with(
        fedpact("run", "resume", run, *home), 19, "is stopped: there is nothing to resume"
    )


def test_a_run_whose_process_is_killed_is_called_interrupted(fed, study_file):
    run = fed.start_run(study_file(**LONG))
    wait_for(lambda: fed.view(run).process, "the run has a process", within=180)
    process = fed.view(run).process
    assert process in _descendants(fed.daemons["coordinator"].process.pid)
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not is_alive(process), "the run's process has ended")

    def listed() -> str:
        rows = json.loads(
            must("run", "list", "--home", str(fed.home.folder), "--format", "json")
        )
        return next(row["status"] for row in rows if row["run"] == run)

    wait_for(lambda: listed() == "interrupted", "the run is called interrupted")


# What ends with one clear sentence


def ends_with(done, code: int, sentence: str) -> None:
    """A command ended with this code and said why, in a sentence and without a traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    first = next(line for line in done.stderr.splitlines() if line.startswith("fedpact: "))
    assert re.search(sentence, first), done.stderr


@pytest.fixture
def server(tmp_path):
    """Makes a coordinator's folder; its arguments."""
    home = tmp_path / "server"

    def make(port: int | None = None) -> tuple[str, str]:
        free, service = free_ports(2)
        ports = ("--port", str(port or free), "--service-port", str(service))
        must("server", "init", "--home", str(home), *ports)
        return ("--home", str(home))

    return make


def test_a_port_in_use(server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        home = server(taken.getsockname()[1])
        ends_with(fedpact("server", "up", *home), 16, "cannot listen on .* already in use")


def test_a_certificate_that_has_expired(server):
    """Which happens only where the CA's key is kept elsewhere: otherwise it is renewed."""
    home = server()
    folder = ServerHome(Path(home[1]))
    renew(folder, "localhost", days=-1)
    folder.ca_key.unlink()
    done = fedpact("server", "up", *home)
    ends_with(done, 17, "The server's certificate expired on")
    assert "fedpact server init --renew" in done.stderr


# No file may grow beyond this: to whoever writes, the disk is full.
FULL_DISK = ("bash", "-c", 'ulimit -f 1 && exec "$@"', "full-disk")


@pytest.mark.parametrize(
    "verb", [("invite", "A", "--sector", "industry"), ("up",), ("institutions",)]
)
def test_a_full_disk_at_the_coordinator(server, verb):
    done = fedpact("server", *verb, *server(), through=FULL_DISK)
    ends_with(done, 18, "cannot be written")


def test_a_full_disk_at_a_site(fed, tmp_path):
    data = write_data(tmp_path / "more.csv")
    home = ("--home", str(tmp_path / "site"))
    done = fedpact("client", "dataset", "add", "more", str(data), *home, through=FULL_DISK)
    ends_with(done, 18, "cannot be written")


def test_a_site_that_has_not_joined(tmp_path):
    done = fedpact("client", "up", "--home", str(tmp_path / "site"))
    ends_with(done, 17, "has not joined")


def test_a_coordinator_that_is_away(server, study_file, tmp_path):
    home = server()
    token = must("server", "invite", NAMES[0], "--sector", "academia", *home)
    joining = fedpact("client", "join", token.strip(), "--home", str(tmp_path / "site"))
    ends_with(joining, 16, "cannot be reached")
    done = fedpact("run", "start", str(study_file()), *home)
    ends_with(done, 19, "has not joined")


def test_nothing_outlives_the_federation(tmp_path):
    """Last in this file's story, with a federation of its own: polite ends leave nothing."""
    data = {"A": write_data(tmp_path / "a.csv")}
    with federation(tmp_path / "fed", data) as small:
        wait_for(lambda: small.online() == {"A"}, "the site is online", within=180)
        assert [small.daemons[name].stop() for name in ("A", "coordinator")] == [0, 0]
        assert marked(small.mark) == {}
