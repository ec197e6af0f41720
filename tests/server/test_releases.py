"""A release: the adapter, a card that says what it cost, and a signature over all of it."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine

from fedpact.common import identity
from fedpact.common.database import open_database
from fedpact.common.errors import RunError, TrustError, UsageError, WireError
from fedpact.common.transcript import COORDINATOR
from fedpact.common.transcript_store import TranscriptStore, with_transcript
from fedpact.common.verdict import Verdict
from fedpact.server import releases, runs
from fedpact.server.card import card
from fedpact.server.conduct import conduct
from fedpact.server.home import MIGRATIONS
from fedpact.server.round_needs import Terms
from fedpact.server.tables import Institution, TranscriptRow, transaction
from support import liar
from support.round_fakes import FakeExchange
from support.site_factory import INSTITUTION

KEY, SITE_KEY = identity.new_signing_key(), identity.new_signing_key()


@dataclass
class Ended:
    engine: Engine
    run: str
    folder: Path

    def build(self, *verdicts: str) -> releases.Release:
        return releases.build(self.engine, self.run, KEY, self.folder, verdicts)


@pytest.fixture(scope="module")
def conducted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coordinator")
    engine = open_database(f"sqlite:///{folder / 'fedpact.db'}", MIGRATIONS)
    purpose = {"name": "tiny", "purpose": "# To find | severe\nreactions <script>"}
    study = tiny.study(study=purpose, training={"rounds": 2})
    with transaction(engine) as session:
        row = Institution(name=INSTITUTION, sector="academia", secret_sha256="0" * 64)
        row.invited_at = row.expires_at = row.joined_at = datetime.now(UTC)
        row.signing_key = identity.public_bytes(SITE_KEY)
        session.add(row)
    run = runs.create(engine, study, folder)
    exchange = FakeExchange({INSTITUTION: liar.honest(0.01)})
    conduct(engine, run, exchange, folder / "artifacts", lambda: Terms({INSTITUTION}))
    yield engine, run, study
    engine.dispose()


@pytest.fixture
def ended(conducted, tmp_path) -> Ended:
    return Ended(conducted[0], conducted[1], tmp_path / "release")


def verdict(study, **fields) -> Verdict:
    values = {
        "study_digest": study.digest,
        "institution": INSTITUTION,
        "on": date(2026, 11, 24),
        "software": "0.1.0",
        "claimed_epsilon": 1.0,
        "delta": 1e-5,
        "unit": "record",
        "lower_bound": 0.25,
        "confidence": 0.95,
        "canaries": 2000,
        "guesses": 100,
        "correct": 60,
        "contradicted": False,
        "releasable": True,
    }
    return Verdict.model_validate({**values, **fields})


def header_of(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def test_the_adapters_folder_has_a_card(conducted):
    engine, run, study = conducted
    text = (Path(runs.view(engine, run).adapter) / releases.CARD).read_text()
    header = header_of(text)
    assert (header["base_model"], header["library_name"]) == (study.model.base, "peft")
    assert {"differential-privacy", "lora"} <= set(header["tags"])
    # Whatever fedpact's tasks do, to the Hugging Face hub it is text classification.
    assert header["pipeline_tag"] == "text-classification"
    assert study.task.name in header["tags"]
    assert study.digest in text
    assert "δ = 1e-05, for adding or removing one record" in text
    assert "2 of 2" in text
    assert "1 of academia" in text
    # What the study says of itself makes no markup.
    assert "<script>" not in text
    assert "\\# To find \\| severe reactions" in text


def test_a_release_says_what_others_risk_and_what_an_audit_found(ended, conducted):
    ended.build(verdict(conducted[2]).signed(SITE_KEY))
    text = (ended.folder / releases.CARD).read_text()
    assert "with 95 % confidence ε is above 0.25; claimed is 1, at δ = 1e-05" in text
    heads = "one record replaced | a person with 2 records added or removed"
    assert heads in text
    (row,) = [
        line
        for line in text.split(heads)[1].splitlines()
        if line.startswith(f"| {INSTITUTION}")
    ]
    numbers = [float(cell) for cell in row.strip("| ").split(" | ")[1:]]
    assert 8 < numbers[0] < numbers[1] < numbers[2] < numbers[3]


def test_a_release_verifies_and_not_one_byte_of_it_can_be_changed(ended):
    made = ended.build()
    public = KEY.public_key()
    assert releases.verify(ended.folder, public) == releases.verify(ended.folder) == made
    with pytest.raises(TrustError, match="another key"):
        releases.verify(ended.folder, SITE_KEY.public_key())
    for path in sorted(ended.folder.iterdir()):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises((TrustError, WireError)):
                releases.verify(ended.folder, public)
        path.write_bytes(whole)
    (ended.folder / releases.CARD).unlink()
    with pytest.raises(TrustError):
        releases.verify(ended.folder, public)


def test_what_was_released_is_in_the_transcript(ended):
    store = TranscriptStore.of(TranscriptRow, COORDINATOR, KEY)
    ended.engine = with_transcript(ended.engine, lambda: store)
    made = ended.build()
    with transaction(ended.engine) as session:
        entry = store.newest(session)
    assert (entry.kind, entry.body) == ("released", vars(made))
    assert entry.is_signed_by(KEY.public_key())


def test_a_release_of_another_signer_does_not_pass_with_less_in_it(ended):
    ended.build()
    document = json.loads((ended.folder / releases.DOCUMENT).read_text())
    document["files"].pop(releases.CARD)
    (ended.folder / releases.DOCUMENT).write_text(json.dumps(document))
    with pytest.raises((TrustError, WireError)):
        releases.verify(ended.folder)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, KEY),
        ({"study_digest": "0" * 64}, SITE_KEY),
        ({"releasable": False}, SITE_KEY),
        ({"membership_auc": 0.6}, SITE_KEY),
    ],
)
def test_a_verdict_that_was_not_released_for_it_is_not_put_in(ended, conducted, fields, key):
    with pytest.raises(TrustError):
        ended.build(verdict(conducted[2], **fields).signed(key))
    assert not ended.folder.exists()


def test_what_is_no_verdict_is_said(ended, conducted):
    signed = verdict(conducted[2]).signed(SITE_KEY)
    with pytest.raises(TrustError):
        ended.build(signed.replace('"correct":60', '"correct":50'))
    for text in ("", "{}", "[]", signed[:-3]):
        with pytest.raises(WireError):
            ended.build(text)


def test_a_run_without_an_adapter_and_a_folder_that_exists_are_refused(ended, conducted):
    engine, _, study = conducted
    waiting = runs.create(engine, study, ended.folder.parent)
    with pytest.raises(RunError):
        releases.build(engine, waiting, KEY, ended.folder)
    ended.folder.mkdir()
    with pytest.raises(UsageError):
        ended.build()


def test_what_is_not_private_says_so(conducted):
    view = runs.view(conducted[0], conducted[1])
    study = view.study
    open_ = study.model_copy(
        update={"privacy": study.privacy.model_copy(update={"mechanism": "none"})}
    )
    text = card(replace(view, study=open_), in_full=True)
    assert "NOT PRIVATE" in text
    assert "differential-privacy" not in text
    assert "ε at δ" not in text
