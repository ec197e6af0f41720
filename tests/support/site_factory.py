"""Small things that tests of a site need: a study, a home with a data set, an update."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tomli_w

from fedpact.client.datasets import Dataset, Datasets
from fedpact.client.home import ClientHome
from fedpact.client.tables import reading
from fedpact.common import identity, wire
from fedpact.common.adapter import Weights
from fedpact.common.identity import SigningKey
from fedpact.common.study import Study
from fedpact.common.transcript import Entry

INSTITUTION = "Clinic"
RECORDS = 1000
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def a_study(**sections: dict | list) -> Study:
    """A study in which the institution takes part; `sections` replace single fields."""
    document: dict = {
        "study": {"name": "triage"},
        "task": {"labels": ["mild", "severe"]},
        "model": {"base": "somewhere/bert", "sha256": MODEL_SHA256},
        "training": {"rounds": 20, "local_steps": 1, "batch_size": 50},
        "privacy": {"target_epsilon": 4.0},
        "institutions": [{"name": INSTITUTION, "sector": "academia", "records": RECORDS}],
    }
    for name, fields in sections.items():
        given = document.get(name, {})
        document[name] = {**given, **fields} if isinstance(given, dict) else fields
    return Study.model_validate(document)


def write_csv(path: Path, records: int = RECORDS, *, salt: str = "") -> Path:
    """A CSV file of distinct records with the study's columns."""
    lines = (f"patient {salt}{i},{('mild', 'severe')[i % 2]}\n" for i in range(records))
    path.write_text("text,label\n" + "".join(lines), encoding="utf-8")
    return path


def a_home(folder: Path, name: str = "notes") -> tuple[ClientHome, Datasets, Dataset]:
    """A site's folder with one data set in it."""
    home = ClientHome(folder / "home")
    datasets = Datasets(home.open_database())
    dataset, _ = datasets.add(name, write_csv(folder / f"{name}.csv", 120))
    return home, datasets, dataset


def join_on_paper(home: ClientHome, key: SigningKey) -> None:
    """Files as joining leaves them: the site then has a transcript, and its key."""
    joined = {
        "institution": INSTITUTION,
        "sector": "academia",
        "role": "data-holder",
        "coordinator": "localhost:1",
        "service": "localhost:2",
        "coordinator_key": "0" * 64,
        "node_id": "1",
        "ca_fingerprint": "",
        "joined_at": datetime.now(UTC),
    }
    home.site.write_text(tomli_w.dumps(joined), encoding="utf-8")
    home.signing_key.write_bytes(identity.private_pem(key))
    home.signing_key.chmod(0o600)


def receipts(home: ClientHome) -> list[Entry]:
    """What the transcript of a site that joined says of updates that left."""
    with reading(home.open_database()) as session:
        entries = list(home.transcript_of(INSTITUTION).entries(session))
    return [entry for entry in entries if entry.kind == "update-sent"]


def some_weights(seed: int = 0) -> Weights:
    """Two small tensors with names as PEFT gives them."""
    rng = np.random.default_rng(seed)
    return Weights.from_tensors(
        {"layer.0.lora_B.weight": rng.normal(size=(4, 2)), "head.bias": rng.normal(size=3)}
    )


def update_header(change: Weights, **fields: object) -> wire.UpdateHeader:
    """The header of an update with `change`."""
    values = {
        "run": "r1",
        "round": 1,
        "study_digest": "a" * 64,
        "change": wire.ArrayInfo.of(change),
        "epsilon": 0.5,
        "steps": 1,
    }
    return wire.UpdateHeader.model_validate({**values, **fields})


def update_request(study: Study, weights: Weights, /, **fields: object) -> wire.Packet:
    """A coordinator's request for one round; `fields` of its header may be others."""
    values = {
        "run": "r1",
        "round": 1,
        "study_digest": study.digest,
        "study": study.canonical(),
        "adapter": wire.ArrayInfo.of(weights),
    }
    return wire.pack(wire.RequestHeader.model_validate({**values, **fields}), weights)
