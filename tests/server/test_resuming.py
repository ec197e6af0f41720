"""A run goes on where it ended, at whatever instant, and comes to what it would have come to."""

from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from fedpact.common import base_models, identity, wire
from fedpact.common import model as models
from fedpact.common.adapter import Weights
from fedpact.common.database import open_database
from fedpact.common.errors import RunError, StorageError
from fedpact.common.study import Study
from fedpact.common.transcript import COORDINATOR
from fedpact.common.transcript_store import TranscriptStore, with_transcript
from fedpact.server import runs
from fedpact.server.conduct import conduct
from fedpact.server.home import MIGRATIONS
from fedpact.server.recompute import Recomputed, recompute
from fedpact.server.round_needs import Terms
from fedpact.server.tables import TranscriptRow
from support import liar
from support.round_fakes import FakeExchange
from support.tiny_bert import write_data

NAMES = ("A", "B")
STORE = TranscriptStore.of(TranscriptRow, COORDINATOR, identity.new_signing_key())
WRITES = ("begun", "round_started", "admitted", "answered", "round_ended", "measured")


class Killed(BaseException):
    """The process ends here, and nothing of it goes on."""


class Kill:
    """Ends the process before or after what is written down for the n-th time."""

    def __init__(self) -> None:
        self.countdown = 10**6

    def __call__(self) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            raise Killed


@pytest.fixture
def kill(monkeypatch) -> Kill:
    """A kill that can come before and after each write."""
    ending = Kill()

    def around(write):
        def written(*args, **more):
            ending()
            write(*args, **more)
            ending()

        return written

    for name in WRITES:
        monkeypatch.setattr(runs.RunRecord, name, around(getattr(runs.RunRecord, name)))
    return ending


class Site:
    """What it answered for a round, it answers again; a round costs it once."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trained: list[int] = []
        self.answers: dict[int, wire.Packet] = {}

    def __call__(self, packet: wire.Packet) -> wire.Packet:
        asked = liar.Asked.of(packet)
        number = asked.header.round
        if number not in self.answers:
            self.trained.append(number)
            rng = np.random.default_rng([self.seed, number, int(asked.adapter.digest[:8], 16)])
            values = rng.normal(0, 0.5, asked.trained.size).astype(np.float32)
            self.answers[number] = asked.update(Weights(asked.trained, values))
        return self.answers[number]


class Coordinator:
    """A database and artifacts, over which one process after the other conducts a run."""

    def __init__(self, engine: Engine, study: Study, folder, model) -> None:
        self.engine, self.study, self.folder, self.model = engine, study, folder, model
        self.sites = {name: Site(seed) for seed, name in enumerate(NAMES)}
        self.run = runs.create(engine, study, folder)

    def conduct(self) -> None:
        exchange = FakeExchange(self.sites)
        artifacts = self.folder / "artifacts"
        terms = Terms(set(NAMES))
        conduct(self.engine, self.run, exchange, artifacts, lambda: terms, self.model)

    def resume(self) -> None:
        runs.interrupt(self.engine)
        runs.resume(self.engine, self.run)
        self.conduct()

    @property
    def view(self) -> runs.RunView:
        return runs.view(self.engine, self.run)

    @property
    def adapter(self) -> str:
        found = runs.reached(self.engine, self.run, self.folder / "artifacts")
        return found.adapter.digest


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_database(database_url, MIGRATIONS)
    yield with_transcript(opened, lambda: STORE)
    opened.dispose()


@pytest.fixture
def coordinator(engine, tiny, tmp_path):
    """Make a coordinator for a study with these sections."""
    test_set = write_data(tmp_path / "public.csv", records=20, seed=7)
    evaluation = {"data": test_set.name, "sha256": base_models.file_digest(test_set)}
    one = {"sector": "academia", "records": 1000}
    sections = {
        "evaluation": evaluation,
        "institutions": [{"name": name, **one} for name in NAMES],
        "federation": {"quorum": 2, "deadline_seconds": 60.0},
    }
    built = {}

    def made(**more) -> Coordinator:
        study = tiny.study(**{**sections, **more})
        if study.digest not in built:
            built[study.digest] = models.build(study, models.choose_device())
        return Coordinator(engine, study, tmp_path, built[study.digest])

    return made


ADAPTIVE = {"server_optimizer": "adam", "clip_norm": 1.0, "target_quantile": 0.5}


def test_a_run_that_is_killed_at_any_write_comes_to_the_same(coordinator, kill):
    whole = coordinator(aggregation=ADAPTIVE)
    whole.conduct()
    writes = 10**6 - kill.countdown
    assert writes > 30
    expected = [(r.number, r.loss, r.accuracy) for r in whole.view.rounds]
    for instant in range(1, writes + 1):
        one = coordinator(aggregation=ADAPTIVE)
        kill.countdown = instant
        with pytest.raises(Killed):
            one.conduct()
        kill.countdown = 10**6
        one.resume()
        view = one.view
        assert (view.status, view.message, one.adapter) == ("completed", "", whole.adapter)
        assert [(r.number, r.loss, r.accuracy) for r in view.rounds] == expected, instant
        assert all(a.state == "updated" for r in view.rounds for a in r.answers.values())
        # A round that is asked again costs no site anything.
        assert [site.trained for site in one.sites.values()] == [[1, 2, 3]] * 2


@pytest.mark.parametrize(
    "aggregation",
    [
        {"method": "fedsvd"},
        {"method": "rolora", "server_optimizer": "yogi"},
        {"method": "flora"},
        {"method": "fedex-lora"},
        {"clip_norm": 0.5, "target_quantile": 0.9},
    ],
)
def test_every_method_goes_on_with_what_was_kept(engine, coordinator, kill, aggregation):
    whole = coordinator(aggregation=aggregation)
    whole.conduct()
    one = coordinator(aggregation=aggregation)
    for instant in (20, 8, 30):  # more than once
        kill.countdown = instant
        with pytest.raises(Killed):
            one.conduct() if instant == 20 else one.resume()
    kill.countdown = 10**6
    one.resume()
    assert one.view.status == "completed"
    assert one.adapter == whole.adapter
    with Session(engine) as session:
        entries = list(STORE.entries(session))
    assert "run-resumed" in [entry.kind for entry in entries]
    assert recompute(entries, one.folder / "artifacts") == Recomputed(6, 0)


def test_who_comes_late_to_a_run_that_goes_on_is_waited_for(coordinator, kill):
    """A coordinator that was started again is there before its sites."""
    one = coordinator(federation={"quorum": 1, "deadline_seconds": 60.0})
    kill.countdown = 20
    with pytest.raises(Killed):
        one.conduct()
    kill.countdown = 10**6

    class Slow(FakeExchange):
        looks = 0

        def present(self):
            self.looks += 1
            return {"A"} if self.looks < 3 else super().present()

    runs.interrupt(one.engine)
    runs.resume(one.engine, one.run)
    terms = Terms(set(NAMES))
    artifacts = one.folder / "artifacts"
    conduct(one.engine, one.run, Slow(one.sites), artifacts, lambda: terms, one.model)
    assert [set(r.answers) for r in one.view.rounds] == [set(NAMES)] * 3


@pytest.mark.parametrize(
    ("keep", "status", "rounds"), [(True, "stopped", 1), (False, "completed", 3)]
)
def test_a_run_that_was_to_stop_stops_unless_someone_says_otherwise(
    coordinator, kill, keep, status, rounds
):
    one = coordinator()
    kill.countdown = 15
    with pytest.raises(Killed):
        one.conduct()
    kill.countdown = 10**6
    runs.request_stop(one.engine, one.run)
    runs.interrupt(one.engine)
    runs.resume(one.engine, one.run, keep_stop=keep)
    one.conduct()
    assert (one.view.status, len(one.view.rounds)) == (status, rounds)
    assert (one.folder / "artifacts" / one.run / "adapter_model.safetensors").exists()


def test_a_run_that_has_failed_goes_on_too(coordinator):
    one = coordinator()
    honest, one.sites["B"] = one.sites["B"], liar.not_a_number
    with pytest.raises(RunError, match="Round 1 has 1 updates"):
        one.conduct()
    assert one.view.status == "failed"
    one.sites["B"] = honest
    one.resume()
    assert one.view.status == "completed"
    assert one.sites["A"].trained == [1, 2, 3]


def test_what_has_ended_for_good_or_is_under_way_is_not_resumed(engine, coordinator):
    one = coordinator()
    with pytest.raises(RunError, match="is waiting: there is nothing to resume"):
        runs.resume(engine, one.run)
    one.conduct()
    with pytest.raises(RunError, match="is completed: there is nothing to resume"):
        runs.resume(engine, one.run)
    with pytest.raises(RunError, match="There is no run nowhere"):
        runs.resume(engine, "nowhere")


def test_only_one_process_conducts_a_run(engine, coordinator):
    one = coordinator()
    runs.set_status(engine, one.run, "running")
    with pytest.raises(RunError, match="conducted by another process"):
        one.conduct()
    # A process that outlived its coordinator has no say in the run that was resumed.
    runs.interrupt(engine)
    runs.resume(engine, one.run)
    assert not runs.set_status(engine, one.run, "failed", "late", process=1)
    assert one.view.status == "waiting"


def test_an_artifact_that_is_not_what_it_was_is_said(coordinator, kill):
    one = coordinator()
    kill.countdown = 20
    with pytest.raises(Killed):
        one.conduct()
    kill.countdown = 10**6
    path = one.folder / "artifacts" / f"{one.adapter}.safetensors"
    other = Weights.load(path)
    path.write_bytes(Weights(other.manifest, other.flat + 1).to_safetensors())
    with pytest.raises(StorageError, match="does not hold what its name says"):
        one.resume()
    assert one.view.status == "failed"
    path.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        one.resume()
