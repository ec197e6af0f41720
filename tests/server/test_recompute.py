"""Rounds made again from what was kept, whatever the method: to the bit, or an error."""

from dataclasses import replace

import numpy as np
import pytest

from fedpact.common import identity
from fedpact.common.adapter import Weights
from fedpact.common.database import open_database, sqlite_url
from fedpact.common.errors import AuditError
from fedpact.common.transcript import COORDINATOR
from fedpact.common.transcript_store import TranscriptStore, with_transcript
from fedpact.server import runs
from fedpact.server.home import MIGRATIONS
from fedpact.server.recompute import recompute
from fedpact.server.rounds import Conductor, Terms
from fedpact.server.tables import TranscriptRow, transaction
from support import liar
from support.round_fakes import FakeClock, FakeExchange, lora_weights, study_among

NAMES = ("A", "B", "C")
CHOICES = [
    {"method": "ffa-lora"},
    {"method": "fedavg"},
    {"method": "fedsvd"},
    {"method": "rolora"},
    {"method": "flexlora"},
    {"robust": "geometric-median"},
    {"robust": "centred-clipping", "norm_bound": 0.5},
    {"method": "rolora", "server_optimizer": "yogi"},
    {"server_optimizer": "momentum", "robust": "trimmed-mean"},
]


def random_site(seed: int):
    """A site whose every change is another."""
    rng = np.random.default_rng(seed)

    def answer(packet):
        asked = liar.Asked.of(packet)
        values = rng.standard_normal(asked.trained.size).astype(np.float32)
        return asked.update(Weights(asked.trained, values))

    return answer


@pytest.fixture
def conducted(tmp_path):
    """Conduct a run; the entries of its transcript, and the folder of what was kept."""
    engine = open_database(sqlite_url(tmp_path / "fedpact.db"), MIGRATIONS)
    store = TranscriptStore.of(TranscriptRow, COORDINATOR, identity.new_signing_key())
    engine = with_transcript(engine, lambda: store)

    def conduct(choice):
        study = study_among(*NAMES, aggregation=choice, federation={"quorum": 3})
        run = runs.create(engine, study, tmp_path)
        record = runs.RunRecord(engine, run, tmp_path)
        sites = {name: random_site(number) for number, name in enumerate(NAMES)}
        Conductor(
            study,
            run,
            FakeExchange(sites),
            record,
            lambda: Terms.all_of(study),
            clock=FakeClock(),
        ).conduct(lora_weights(0.5))
        with transaction(engine) as session:
            return list(store.entries(session)), tmp_path

    yield conduct
    engine.dispose()


@pytest.mark.parametrize(
    "choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values()))
)
def test_every_round_comes_out_again_to_the_bit(conducted, choice):
    entries, artifacts = conducted(choice)
    assert recompute(entries, artifacts) == 3


@pytest.mark.parametrize("lie", ["adapter", "state"])
def test_a_round_that_says_another_result_is_found(conducted, lie):
    entries, artifacts = conducted({"server_optimizer": "momentum"})
    aggregated = [n for n, entry in enumerate(entries) if entry.kind == "aggregated"]
    second = aggregated[1]
    forged = {**entries[second].body, lie: "0" * 64}
    entries[second] = replace(entries[second], body=forged)
    with pytest.raises(AuditError, match=r"round 2.* does not fit"):
        recompute(entries, artifacts)
