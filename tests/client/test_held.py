"""Updates that wait for a person: nothing leaves before the word, and nothing is spent twice."""

import json
import threading
from dataclasses import dataclass, replace

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from fedpact.client.agreements import Agreements
from fedpact.client.cli import client_app
from fedpact.client.datasets import Datasets
from fedpact.client.held import StoppingError
from fedpact.client.home import ClientHome
from fedpact.client.site import Site
from fedpact.client.tables import DepartureRow, reading
from fedpact.client.up import build_site
from fedpact.client.workbench import Workbench
from fedpact.common import identity, wire
from fedpact.common import model as models
from fedpact.common.study import Study
from support.processes import wait_for
from support.site_factory import INSTITUTION, join_on_paper, receipts, update_request
from support.tiny_bert import write_data

KEY = identity.new_signing_key()


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


@dataclass
class House:
    """A site whose policy asks a person, and the study that it has signed."""

    home: ClientHome
    site: Site
    study: Study
    workbench: Workbench

    def rule(self, text: str) -> None:
        rules = f'allow_model_folders = true\nrelease = "ask"\n{text}'
        self.home.policy.write_text(rules, encoding="utf-8")

    def request(self, number: int = 1) -> wire.Packet:
        weights = models.initial_weights(self.workbench.model(self.study).module, 0)
        return update_request(self.study, weights, round=number)

    def restarted(self, stop: threading.Event | None = None) -> Site:
        return build_site(self.home, INSTITUTION, self.workbench, stop)

    def departures(self) -> list[DepartureRow]:
        with reading(self.home.open_database()) as session:
            return list(session.scalars(select(DepartureRow).order_by(DepartureRow.id)))

    def waiting(self) -> list[dict]:
        return json.loads(self.client("departures", "--waiting", "--format", "json"))

    def client(self, *words: str) -> str:
        done = CliRunner().invoke(client_app, [*words, "--home", str(self.home.folder)])
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture
def house(tmp_path, tiny, workbench) -> House:
    home = ClientHome(tmp_path / "home")
    Datasets(home.open_database()).add("notes", write_data(tmp_path / "notes.csv"))
    study = tiny.study()
    Agreements(home.open_database()).decide(KEY, INSTITUTION, study, "approve")
    made = House(home, build_site(home, INSTITUTION, workbench), study, workbench)
    made.rule("release_wait_minutes = 0")
    return made


def refusal(packet: wire.Packet) -> str:
    header, array = wire.unpack(packet)
    assert isinstance(header, wire.Refusal), header
    assert (header.code, array) == ("policy", None)
    return header.reason


def test_without_a_word_nothing_leaves_and_with_it_exactly_what_was_shown(house, monkeypatch):
    assert "waits for a person" in refusal(house.site.answer(house.request()))
    (shown,) = house.waiting()
    assert (shown["run"], shown["round"], shown["word"]) == ("r1", 1, None)
    assert {"norm", "epsilon", "manifest", "reserved", "steps"} <= shown["summary"].keys()
    assert [d.kind for d in house.departures()] == ["refusal"]
    table = house.client("departures", "--waiting")
    assert "record" in table

    monkeypatch.setattr(house.workbench, "train", lambda *_: pytest.fail("trained again"))
    assert "waits for a person" in refusal(house.restarted().answer(house.request()))
    assert shown["sha256"] in house.client("release", "r1", "1").replace("\n", "")
    packet = house.restarted().answer(house.request())
    header, change = wire.unpack(packet)
    assert isinstance(header, wire.UpdateHeader)
    assert change.norm == shown["summary"]["norm"]
    left = house.departures()[-1]
    assert (left.kind, left.sha256, left.bytes) == ("update", shown["sha256"], packet.size)
    assert house.waiting() == []
    assert house.site.answer(house.request()) == packet, "asked again, the same bytes leave"
    assert len(house.site.ledger.history("notes")) == 1
    assert [path.suffix for path in house.home.outbox.iterdir()] == [".packet"]


def test_what_was_withheld_never_leaves(house, monkeypatch):
    house.site.answer(house.request())
    house.client("withhold", "r1", "1")
    monkeypatch.setattr(house.workbench, "train", lambda *_: pytest.fail("trained again"))
    for site in (house.site, house.restarted()):
        assert "withheld" in refusal(site.answer(house.request()))
    said = CliRunner().invoke(
        client_app, ["release", "r1", "1", "--home", str(house.home.folder)]
    )
    assert said.exit_code != 0
    assert list(house.home.outbox.iterdir()) == []
    assert {d.kind for d in house.departures()} == {"refusal"}
    (spent,) = house.site.ledger.history("notes")
    assert spent.settled_steps == 2, "what it cost stays spent"


def test_the_site_waits_until_the_word_comes(house):
    house.rule("release_wait_minutes = 10")
    replies: list[wire.Packet] = []
    asked = threading.Thread(target=lambda: replies.append(house.site.answer(house.request())))
    asked.start()
    wait_for(house.waiting, "the update waits")
    assert replies == []
    house.client("release", "r1", "1")
    asked.join()
    assert isinstance(wire.unpack(replies[0])[0], wire.UpdateHeader)


def test_a_site_that_is_stopped_while_it_waits_takes_it_up_again(house, monkeypatch):
    house.rule("release_wait_minutes = 10")
    stop, ended = threading.Event(), list[bool]()

    def serve() -> None:
        with pytest.raises(StoppingError):
            house.restarted(stop).answer(house.request())
        ended.append(True)

    asked = threading.Thread(target=serve)
    asked.start()
    wait_for(house.waiting, "the update waits")
    stop.set()
    asked.join()
    assert ended
    assert house.departures() == [], "not even a refusal has left"
    house.client("release", "r1", "1")
    monkeypatch.setattr(house.workbench, "train", lambda *_: pytest.fail("trained again"))
    assert isinstance(
        wire.unpack(house.restarted().answer(house.request()))[0], wire.UpdateHeader
    )
    assert len(house.site.ledger.history("notes")) == 1


def test_it_waits_no_longer_than_the_studys_deadline(house):
    house.rule("release_wait_minutes = 1000")
    waited: list[float] = []
    site = replace(house.site, pause=lambda seconds: waited.append(seconds) or False)
    refusal(site.answer(house.request()))
    assert sum(waited) == pytest.approx(house.study.federation.deadline_seconds)


@pytest.mark.parametrize("word", ["release", None])
def test_after_withdrawing_no_held_update_leaves(house, word):
    house.site.answer(house.request())
    if word:
        house.client("release", "r1", "1")
    agreements = Agreements(house.home.open_database())
    agreements.decide(KEY, INSTITUTION, house.study, "withdraw")
    assert "withdrawn" in refusal(house.site.answer(house.request()))
    assert {d.kind for d in house.departures()} == {"refusal"}


def test_who_withdraws_while_the_site_trains_sees_nothing_leave(house, monkeypatch):
    house.home.policy.write_text("allow_model_folders = true\n")
    train = house.workbench.train

    def meanwhile(*args):
        trained = train(*args)
        Agreements(house.home.open_database()).decide(KEY, INSTITUTION, house.study, "withdraw")
        return trained

    monkeypatch.setattr(house.workbench, "train", meanwhile)
    assert "withdrawn" in refusal(house.site.answer(house.request()))
    assert {d.kind for d in house.departures()} == {"refusal"}


def test_bytes_that_were_changed_while_they_waited_do_not_leave(house):
    house.site.answer(house.request())
    (shown,) = house.waiting()
    (path,) = house.home.outbox.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    house.client("release", "r1", "1")
    # Nothing has left: it is trained again, under the reservation that stands, and shown again.
    assert "waits for a person" in refusal(house.site.answer(house.request()))
    (again,) = house.waiting()
    assert again["sha256"] != shown["sha256"]
    assert len(house.site.ledger.history("notes")) == 1


def test_a_run_that_went_on_gives_up_what_waited(house):
    house.site.answer(house.request())
    house.site.answer(house.request(2))
    assert [held["round"] for held in house.waiting()] == [2]


def test_the_receipt_says_exactly_what_left(house):
    """One signed entry: study, what was reserved, which tensors, norm, size, SHA-256, by whom."""
    join_on_paper(house.home, KEY)
    site = house.restarted()
    site.answer(house.request())
    house.client("release", "r1", "1")
    packet = site.answer(house.request())
    header, change = wire.unpack(packet)
    (receipt,) = receipts(house.home)
    assert receipt.is_signed_by(KEY.public_key())
    mechanism = site.ledger.history("notes")[0].mechanism
    assert receipt.body == {
        "run": "r1",
        "round": 1,
        "study_digest": house.study.digest,
        "bytes": packet.size,
        "digest": change.digest,
        "manifest": change.manifest.digest,
        "norm": change.norm,
        "sha256": house.departures()[-1].sha256,
        "epsilon": header.epsilon,
        "released_by": "person",
        "reserved": [
            {
                "study_digest": house.study.digest,
                "kind": "training",
                "unit": "record",
                "noise_multiplier": mechanism.noise_multiplier,
                "sample_rate": mechanism.sample_rate,
                "steps": 2,
                "delta": 1e-5,
            }
        ],
    }
