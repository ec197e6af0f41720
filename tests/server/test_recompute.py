"""A run's transcript, and its rounds aggregated again from what was kept."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from fedpact.common import identity
from fedpact.common.adapter import Weights
from fedpact.common.database import open_database
from fedpact.common.errors import AuditError
from fedpact.common.transcript import COORDINATOR, Entry
from fedpact.common.transcript_store import TranscriptStore, with_transcript
from fedpact.server import runs
from fedpact.server.home import MIGRATIONS
from fedpact.server.recompute import Recomputed, recompute
from fedpact.server.round_needs import Terms
from fedpact.server.rounds import Conductor
from fedpact.server.tables import TranscriptRow
from support import liar
from support.round_fakes import FakeClock, FakeExchange, lora_weights, study_among

NAMES = ("A", "B", "C")
STORE = TranscriptStore.of(TranscriptRow, COORDINATOR, identity.new_signing_key())
CHOICES = [
    {"method": "ffa-lora"},
    {"method": "fedavg"},
    {"method": "fedsvd"},
    {"method": "rolora"},
    {"method": "flexlora"},
    {"method": "fedex-lora"},
    {"method": "flora"},
    {"method": "hetlora"},
    {"robust": "geometric-median"},
    {"robust": "centred-clipping", "norm_bound": 0.5},
    {"method": "rolora", "server_optimizer": "yogi"},
    {"server_optimizer": "momentum", "robust": "trimmed-mean"},
    {"clip_norm": 0.5},
    {"clip_norm": 1.0, "target_quantile": 0.5, "method": "fedsvd"},
    {"clip_norm": 9.0, "target_quantile": 0.1, "server_optimizer": "adam"},
]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_database(database_url, MIGRATIONS)
    yield with_transcript(opened, lambda: STORE)
    opened.dispose()


def drawn(seed: int):
    """A site that changes what it trains at random."""

    def answer(packet):
        asked = liar.Asked.of(packet)
        rng = np.random.default_rng([seed, asked.header.round])
        values = rng.normal(0, 1, asked.trained.size).astype(np.float32)
        return asked.update(Weights(asked.trained, values))

    return answer


@pytest.fixture
def entries(engine, tmp_path) -> list[Entry]:
    """What a run of three rounds among three sites, one of which lies, has written."""
    study = study_among(*NAMES, federation={"quorum": 2, "deadline_seconds": 60.0})
    sites = {"A": drawn(1), "B": drawn(2), "C": liar.not_a_number}
    (tmp_path / "artifacts").mkdir()
    run = runs.create(engine, study, tmp_path)
    record = runs.RunRecord(engine, run, tmp_path / "artifacts")
    terms = partial(Terms.all_of, study)
    Conductor(study, run, FakeExchange(sites), record, terms).conduct(lora_weights(0.5))
    runs.set_status(engine, run, "completed")
    with Session(engine) as session:
        return list(STORE.entries(session))


def test_a_run_is_written_down_in_the_order_in_which_it_happened(entries):
    kinds = [entry.kind for entry in entries]
    middle = ["round-started", "update-received", "update-received", "aggregated"]
    assert kinds[0] == "run-started"
    assert kinds[-1] == "run-ended"
    assert [kind for kind in kinds if kind != "refused"][1:-1] == 3 * middle
    assert kinds.count("refused") == 3
    aggregated = [entry.body for entry in entries if entry.kind == "aggregated"]
    assert [u["institution"] for u in aggregated[0]["updates"]] == ["A", "B"]
    # Each round goes on from the adapter that the last one made.
    assert [body["before"] for body in aggregated[1:]] == [
        body["adapter"] for body in aggregated[:-1]
    ]


def test_every_round_comes_out_bit_for_bit(entries, tmp_path):
    assert recompute(entries, tmp_path / "artifacts") == Recomputed(3, 0)


def test_an_update_that_was_exchanged_is_found(entries, tmp_path):
    (digest, *_) = [e.body["digest"] for e in entries if e.kind == "update-received"]
    path = tmp_path / "artifacts" / f"{digest}.safetensors"
    weights = Weights.load(path)
    Weights(weights.manifest, np.nextafter(weights.flat, np.float32(9))).save(path)
    with pytest.raises(AuditError, match="does not hold what its name says"):
        recompute(entries, tmp_path / "artifacts")


def test_an_update_that_is_gone_is_said(entries, tmp_path):
    (digest, *_) = [e.body["digest"] for e in entries if e.kind == "update-received"]
    (tmp_path / "artifacts" / f"{digest}.safetensors").unlink()
    with pytest.raises(AuditError, match="cannot be read"):
        recompute(entries, tmp_path / "artifacts")


@pytest.mark.parametrize("change", ["weight", "left out", "start"])
def test_an_adapter_that_is_not_the_aggregate_is_found(entries, tmp_path, change):
    number = next(i for i, e in enumerate(entries) if e.kind == "aggregated")
    body = {**entries[number].body}
    updates = [dict(update) for update in body["updates"]]
    if change == "weight":
        updates[0]["weight"] *= 2
    elif change == "left out":
        del updates[0]
    else:
        body["before"] = body["adapter"]
    fields = {k: v for k, v in vars(entries[number]).items() if k not in {"hash", "signature"}}
    forged = Entry.sign(
        identity.new_signing_key(), **{**fields, "body": {**body, "updates": updates}}
    )
    with pytest.raises(AuditError, match="does not fit"):
        recompute([*entries[:number], forged], tmp_path / "artifacts")


@pytest.fixture
def conducted(engine, tmp_path):
    """Conduct a run; the entries of its transcript, and the folder of what was kept."""

    def conduct(choice, ranks=(None, None, None)):
        study = study_among(
            *NAMES, adapter={"r": 2}, aggregation=choice, federation={"quorum": 3}
        )
        institutions = zip(study.institutions, ranks, strict=True)
        study = study.with_institutions(
            tuple(one.model_copy(update={"r": rank}) for one, rank in institutions)
        )
        run = runs.create(engine, study, tmp_path)
        record = runs.RunRecord(engine, run, tmp_path)
        sites = {name: drawn(number) for number, name in enumerate(NAMES)}
        terms = partial(Terms.all_of, study)
        conductor = Conductor(study, run, FakeExchange(sites), record, terms, clock=FakeClock())
        conductor.conduct(lora_weights(0.5))
        with Session(engine) as session:
            return list(STORE.entries(session)), tmp_path

    return conduct


@pytest.mark.parametrize(
    "choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values()))
)
def test_every_way_to_aggregate_comes_out_again(conducted, choice):
    entries, artifacts = conducted(choice)
    assert recompute(entries, artifacts) == Recomputed(3, 0)


@pytest.mark.parametrize("method", ["flora", "flexlora", "hetlora"])
def test_what_sites_of_lower_ranks_were_sent_is_written_down_and_comes_out_too(
    conducted, method
):
    entries, artifacts = conducted({"method": method}, ranks=(1, None, 2))
    assert recompute(entries, artifacts) == Recomputed(3, 0)
    started = [n for n, entry in enumerate(entries) if entry.kind == "round-started"]
    assert [list(entries[n].body["sent"]) for n in started] == [["A"]] * 3
    second = entries[started[1]]
    forged = {**second.body, "sent": {"A": "0" * 64}}
    entries[started[1]] = replace(second, body=forged)
    with pytest.raises(AuditError, match=r"round 2.* A was sent another adapter"):
        recompute(entries, artifacts)


def test_rounds_with_noise_that_nobody_can_draw_again_are_counted_apart(conducted):
    noised, artifacts = conducted({"clip_norm": 0.5, "noise_multiplier": 1.0})
    assert recompute(noised, artifacts) == Recomputed(0, 3)
    both, _ = conducted({"clip_norm": 0.5})
    assert recompute(both, artifacts) == Recomputed(3, 3)


@pytest.mark.parametrize("lie", ["adapter", "state"])
def test_a_round_that_says_another_result_is_found(conducted, lie):
    entries, artifacts = conducted({"server_optimizer": "momentum"})
    aggregated = [n for n, entry in enumerate(entries) if entry.kind == "aggregated"]
    second = aggregated[1]
    forged = {**entries[second].body, lie: "0" * 64}
    entries[second] = replace(entries[second], body=forged)
    with pytest.raises(AuditError, match=r"round 2.* does not fit"):
        recompute(entries, artifacts)
