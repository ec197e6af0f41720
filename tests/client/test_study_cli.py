"""`fedpact client studies`, `show`, `approve` …, as people type them, with a real coordinator."""

import json
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpact.client.agreements import Agreements
from fedpact.client.cli import client_app
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.common import study as studies
from fedpact.common.errors import PolicyError, RunError, StudyError, TrustError, UsageError
from fedpact.common.identity import Role
from fedpact.server.run_cli import run_app
from support.coordinator import Coordinator, make_home, serving
from support.tiny_bert import TinyBert, write_data

ROLES = {
    "Hospital": Role.DATA_HOLDER,
    "Maker": Role.DATA_HOLDER,
    "Board": Role.AUDITOR,
    "Lab": Role.RESEARCHER,
}

RULES = "allow_model_folders = true\nallow_outside_recipients = true\n"


@dataclass
class Town:
    """A coordinator that is up, and the folders of those who have joined it."""

    coordinator: Coordinator
    folder: Path
    tiny: TinyBert
    count: int = field(default=0)

    def at(self, name: str, *words: object, answer: str = "") -> str:
        """Type a command at an institution; what it prints."""
        return _type(client_app, *words, "--home", self.folder / name, answer=answer)

    def hub(self, *words: object) -> str:
        """Type `fedpact run …` at the coordinator."""
        return _type(run_app, *words, "--home", self.coordinator.home.folder)

    def write(self, **sections: object) -> Path:
        """A study of the two data holders, another each time."""
        self.count += 1
        institutions = [
            {"name": name, "sector": "academia", "records": 120}
            for name, role in ROLES.items()
            if role is Role.DATA_HOLDER
        ]
        return self.tiny.write_study(
            self.folder / "study.toml",
            **{
                "study": {
                    "name": f"study {self.count}",
                    "purpose": "Tell red\nfrom blue.",
                },
                "institutions": institutions,
                **sections,
            },
        )

    def proposed(self, **sections: object) -> str:
        """Propose another study; the beginning of its digest."""
        path = self.write(**sections)
        self.hub("propose", path)
        return studies.load(path).digest[:12]

    def state(self, digest: str) -> dict:
        rows = json.loads(self.hub("studies", "--format", "json"))
        return next(row for row in rows if row["study_digest"].startswith(digest))


def _type(app, *words: object, answer: str = "") -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], input=answer)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def town(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("town")
    with serving(make_home(folder / "hub")) as coordinator:
        for name, role in ROLES.items():
            coordinator.joined(name, folder / name, role=role)
        for seed, name in enumerate(("Hospital", "Maker")):
            data = write_data(folder / f"{name}.csv", seed=seed)
            home = ClientHome(folder / name)
            Datasets(home.open_database()).add("notes", data)
            home.policy.write_text(RULES)
        yield Town(coordinator, folder, tiny)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def rows(town: Town, name: str) -> dict[str, dict]:
    listed = json.loads(town.at(name, "studies", "--format", "json"))
    return {row["study_digest"][:12]: row for row in listed}


def test_a_proposed_study_is_seen_by_those_whom_it_concerns(town):
    digest = town.proposed()
    for name in ("Hospital", "Maker", "Board"):
        row = rows(town, name)[digest]
        assert (row["state"], row["here"]) == ("proposed", "undecided")
        assert row["missing"] == ["the signature of Hospital", "the signature of Maker"]
    assert digest not in rows(town, "Lab")
    assert digest in town.at("Hospital", "studies")


def test_a_study_is_shown_in_plain_words(town):
    digest = town.proposed(
        governance={"until": "2099-12-31", "recipients": ["A Regulator"]},
        study={"name": "words", "purpose": "Tell red\nfrom blue."},
    )
    lines = json.loads(town.at("Hospital", "show", digest, "--format", "json"))
    assert lines["purpose"] == "Tell red from blue. (use: research)"
    assert lines["task"] == "text-classification: tell apart mild, severe"
    assert town.tiny.sha256 in lines["base model"]
    # Two layers of query and value at rank 2 in 32 dimensions; a head of 2 x 32 + 2.
    assert lines["leaves a site"] == (
        f"3 times the change of 6 tensors (4 of LoRA's B, 2 of the head), "
        f"{4 * (4 * 2 * 32 + 2 * 32 + 2):,} bytes; no metrics"
    )
    assert lines["privacy"] == (
        "ε ≤ 8 at δ = 1e-05 for the whole run: neighbouring data sets add or remove one record"
    )
    assert (
        lines["data set"]
        == "notes, 120 records; ε = 10 of 10 remains of its budget, at δ = 0.0001, for adding or removing one record"
    )
    assert lines["until"] == "2099-12-31"
    assert "Maker (academia, 120 records)" in lines["takes part"]
    assert lines["release"] == "to those who take part, and to A Regulator"
    assert lines["state"].startswith("proposed: it lacks the signature of Hospital")
    assert (lines["signed"], lines["here"]) == ("by nobody yet", "you have not decided")
    assert lines["your policy"] == "allows it"
    assert "ε ≤ 8" in town.at("Hospital", "show", "words")


def test_what_is_not_private_is_said_so(town):
    digest = town.proposed(privacy={"mechanism": "none"}, evaluation={"site_metrics": "raw"})
    lines = json.loads(town.at("Hospital", "show", digest, "--format", "json"))
    assert lines["privacy"].startswith("NONE")
    assert "NOT PRIVATE" in lines["leaves a site"]
    assert lines["your policy"].startswith("forbids it: The study has no differential privacy")
    assert not {"is told", "begins with"} & set(lines)


def test_whether_it_is_told_what_updates_were_worth_is_said(town):
    write_data(town.folder / "public.csv", seed=9)
    asked = {"data": "public.csv", "contributions": "leave-one-out"}
    digest = town.proposed(evaluation=asked)
    lines = json.loads(town.at("Hospital", "show", digest, "--format", "json"))
    assert "each site's updates were worth" in lines["is told"]


def test_with_what_a_study_begins_is_said(town):
    digest = town.proposed(adapter={"start": "public-start"})
    lines = json.loads(town.at("Hospital", "show", digest, "--format", "json"))
    assert "public-start, whatever it holds" in lines["begins with"]
    digest = town.proposed(adapter={"start": "public-start", "start_sha256": "ab" * 32})
    lines = json.loads(town.at("Hospital", "show", digest, "--format", "json"))
    assert "ab" * 32 in lines["begins with"]


def test_two_people_approve_and_the_study_is_agreed(town):
    digest = town.proposed()
    shown = town.at("Hospital", "approve", digest, answer="y\n")
    assert "ε ≤ 8" in shown
    assert "Sign it as Hospital?" in shown
    assert town.state(digest)["signed"] == ["Hospital"]
    town.at("Maker", "approve", digest, "--yes")
    assert town.state(digest)["state"] == "agreed"
    assert rows(town, "Hospital")[digest]["here"] == "approve"
    lines = json.loads(town.at("Hospital", "show", digest, "--format", "json"))
    assert "Hospital approved on" in lines["signed"]
    assert "Maker approved on" in lines["signed"]
    assert lines["here"] == "you approved it"


def test_who_does_not_say_yes_has_not_signed(town):
    digest = town.proposed()
    assert "Aborted" in town.at("Hospital", "approve", digest, answer="n\n")
    assert town.state(digest)["signed"] == []


def test_a_person_cannot_approve_what_the_policy_forbids(town):
    digest = town.proposed(privacy={"mechanism": "none"})
    with pytest.raises(PolicyError, match="no differential privacy"):
        town.at("Hospital", "approve", digest, "--yes")
    assert town.state(digest)["signed"] == []


def test_a_refusal_reaches_everyone_with_its_reason(town):
    digest = town.proposed()
    town.at("Maker", "refuse", digest, "--why", "The purpose is unclear.")
    (decision,) = town.state(digest)["decisions"]
    assert (decision["institution"], decision["kind"]) == ("Maker", "refuse")
    lines = json.loads(town.at("Hospital", "show", digest, "--format", "json"))
    assert "The purpose is unclear." in lines["signed"]


def test_an_approval_is_taken_back(town):
    digest = town.proposed()
    town.at("Hospital", "approve", digest, "--yes")
    town.at("Hospital", "withdraw", digest)
    assert town.state(digest)["signed"] == []


def test_an_auditor_consents_and_vetoes(town):
    digest = town.proposed(governance={"auditor_consent": True})
    for name in ("Hospital", "Maker"):
        town.at(name, "approve", digest, "--yes")
    assert town.state(digest)["missing"] == ["an auditor's consent"]
    town.at("Board", "consent", digest, "--yes")
    assert town.state(digest)["state"] == "agreed"
    town.at("Board", "veto", digest, "--why", "A complaint.")
    assert town.state(digest)["state"] == "withdrawn"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Hospital", ("consent", "--yes")),
        ("Hospital", ("veto", "--why", "x")),
        ("Board", ("refuse", "--why", "x")),
        ("Board", ("withdraw",)),
    ],
)
def test_a_role_decides_only_what_is_its_own(town, name, words):
    digest = town.proposed()
    verb, *options = words
    with pytest.raises(UsageError, match=f"cannot {verb} a study"):
        town.at(name, verb, digest, *options)
    assert town.state(digest)["decisions"] == []


def test_a_run_does_not_start_before_the_study_is_agreed(town):
    path = town.write()
    with pytest.raises(RunError, match=r"it lacks the signature of Hospital; .* of Maker"):
        town.hub("start", path, "--no-wait")
    digest = studies.load(path).digest[:12]
    town.at("Hospital", "approve", digest, "--yes")
    town.at("Maker", "refuse", digest, "--why", "No time this year.")
    # Nobody is waited for in vain.
    with pytest.raises(RunError, match=r"Maker refused \(No time this year\.\)"):
        town.hub("start", path)
    assert town.state(digest)["state"] == "proposed"


def test_an_ended_study_is_not_run_again(town):
    path = town.write()
    town.hub("propose", path)
    digest = studies.load(path).digest[:12]
    assert "has ended" in town.hub("end", digest)
    with pytest.raises(StudyError, match="was ended"):
        town.hub("start", path)


def test_a_researcher_proposes_and_reads_the_results(town):
    path = town.write()
    digest = studies.load(path).digest[:12]
    assert digest in town.at("Lab", "propose", path)
    assert town.state(digest)["proposer"] == "Lab"
    assert rows(town, "Hospital")[digest]["proposer"] == "Lab"
    assert json.loads(town.at("Lab", "results", digest)) == []
    with pytest.raises(TrustError):
        town.at("Hospital", "propose", town.write())


def test_a_study_that_nobody_knows(town):
    with pytest.raises(StudyError, match="No study shown here is 'none'"):
        town.at("Hospital", "show", "none")


def test_a_study_that_was_taken_back_cannot_be_signed(town):
    digest = town.proposed()
    assert "was taken back" in town.hub("recall", digest)
    assert rows(town, "Hospital")[digest]["state"] == "withdrawn"
    with pytest.raises(StudyError, match="taken back"):
        town.at("Hospital", "approve", digest, "--yes")


def test_a_coordinator_that_is_away_does_not_stop_a_withdrawal(tmp_path, tiny):
    with serving(make_home(tmp_path / "hub")) as coordinator:
        coordinator.joined("Hospital", tmp_path / "Hospital")
        home = ClientHome(tmp_path / "Hospital")
        Datasets(home.open_database()).add("notes", write_data(tmp_path / "notes.csv"))
        home.policy.write_text(RULES)
        town = Town(coordinator, tmp_path, tiny)
        alone = [{"name": "Hospital", "sector": "academia", "records": 120}]
        digest = town.proposed(institutions=alone)
        town.at("Hospital", "approve", digest, "--yes")
        assert town.state(digest)["state"] == "agreed"
    # Somebody who takes calls and answers none: by then it is written down here.
    port, seen = coordinator.home.settings().service_port, []
    with socket.create_server(("127.0.0.1", port)) as listener:

        def take_one() -> None:
            listener.accept()[0].close()
            seen.append(Agreements(home.open_database()).find(digest).own.kind)
            listener.close()

        taking = threading.Thread(target=take_one)
        taking.start()
        said = town.at("Hospital", "withdraw", digest)
        taking.join()
    assert seen == ["withdraw"]
    assert "Signed: Hospital, withdraw" in said
    assert "holds here from now on" in said
    assert town.state(digest)["state"] == "agreed"
    with serving(coordinator.home):
        assert rows(town, "Hospital")[digest]["here"] == "withdraw"
        assert town.state(digest)["signed"] == []
