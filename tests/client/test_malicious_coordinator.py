"""A coordinator that cheats, at a site's public door: nothing is spent, kept or given away.

Each attack is a message. Whatever it is, the ledger, the outbox and the cache stay as they
were, what comes back is a refusal without an array, and the refusal is written down.
"""

import copy
import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sqlalchemy import select
from sqlalchemy.orm import Session

from fedpact.client.agreements import Agreements
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.site import Site
from fedpact.client.tables import DatasetRow, DepartureRow, ReservationRow
from fedpact.client.up import build_site
from fedpact.client.workbench import Workbench
from fedpact.common import identity, wire
from fedpact.common import model as models
from fedpact.common.adapter import Weights
from fedpact.common.study import Study
from support.site_factory import INSTITUTION, update_request
from support.tiny_bert import RECORDS, TinyBert, write_data

ROUNDS = 3
CLINIC = {"name": INSTITUTION, "sector": "academia", "records": RECORDS}


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


@dataclass
class House:
    """A site that the coordinator would break into."""

    home: ClientHome
    site: Site
    tiny: TinyBert
    study: Study
    initial: Weights
    folder: Path

    def request(
        self, study: Study | None = None, weights: Weights | None = None, /, **fields: object
    ) -> wire.Packet:
        return update_request(study or self.study, weights or self.initial, **fields)

    def altered(self, **fields: object) -> wire.Packet:
        """A request whose header, as JSON, says something else."""
        whole = self.request()
        header = {**json.loads(whole.header), **fields}
        return wire.Packet(header=json.dumps(header), array=whole.array)

    def adapter_says(self, **fields: object) -> wire.Packet:
        return self.altered(adapter={**json.loads(self.request().header)["adapter"], **fields})

    def study_text(self, text: str) -> wire.Packet:
        """A request with any text for a study, under that text's own digest."""
        return self.request(study=text, study_digest=hashlib.sha256(text.encode()).hexdigest())

    def study_says(self, section: str, **fields: object) -> wire.Packet:
        """A request with a study that no study file could be."""
        document = json.loads(self.study.canonical())
        document[section] = {**document[section], **fields}
        return self.study_text(canonical(document))

    def kept(self) -> tuple[object, ...]:
        """All that is written at the site, but for the refusals."""
        rows = []
        with Session(self.home.open_database()) as session:
            for table in (DatasetRow, ReservationRow, DepartureRow):
                query = select(*table.__table__.columns)
                if table is DepartureRow:
                    query = query.where(DepartureRow.kind != "refusal")
                rows.append(session.execute(query).all())
        folders = (self.home.cache, self.home.outbox)
        files = sorted((p, p.read_bytes()) for folder in folders for p in folder.rglob("*"))
        return (*rows, files)

    def refusals(self) -> list[DepartureRow]:
        with Session(self.home.open_database()) as session:
            query = select(DepartureRow).where(DepartureRow.kind == "refusal")
            return list(session.scalars(query.order_by(DepartureRow.id)))

    def refused(self, packet: wire.Packet) -> wire.Refusal:
        """Attack; the refusal, once all that must hold does."""
        kept, before = self.kept(), len(self.refusals())
        reply = self.site.answer(packet)
        header, array = wire.unpack(reply)
        assert isinstance(header, wire.Refusal), header
        assert (array, reply.array) == (None, b"")
        assert self.kept() == kept
        written = self.refusals()
        assert len(written) == before + 1
        assert written[-1].bytes == reply.size
        assert header.reason.isprintable()
        assert str(self.home.folder) not in header.reason
        return header

    def update(self, packet: wire.Packet) -> wire.UpdateHeader:
        header, _ = wire.unpack(self.site.answer(packet))
        assert isinstance(header, wire.UpdateHeader), header
        return header


@pytest.fixture
def house(tmp_path, tiny, workbench) -> House:
    home = ClientHome(tmp_path / "home")
    Datasets(home.open_database()).add("notes", write_data(tmp_path / "notes.csv"))
    home.policy.write_text(f'models = ["{tiny.sha256}"]\nmax_epsilon = 8.0\n')
    study = tiny.study()
    initial = models.initial_weights(workbench.model(study).module, study.training.seed)
    # Every study is taken as signed, so that what stands behind the signature is tested too.
    site = replace(build_site(home, INSTITUTION, workbench), agreed=lambda _: None)
    return House(home, site, tiny, study, initial, tmp_path)


def canonical(document: object) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def values(weights: Weights, value: float) -> Weights:
    changed = weights.flat.copy()
    changed[7] = value
    return Weights(weights.manifest, changed)


def renamed(house: House) -> Weights:
    tensors = house.initial.tensors()
    return Weights.from_tensors({f"{name}.x": tensor for name, tensor in tensors.items()})


def reordered(house: House) -> Weights:
    return Weights.from_tensors(dict(reversed(house.initial.tensors().items())))


def reshaped(house: House) -> Weights:
    tensors = house.initial.tensors()
    return Weights.from_tensors({name: tensor.T for name, tensor in tensors.items()})


def twice(house: House) -> wire.Packet:
    whole = house.request()
    header = whole.header.replace('"round":1', '"round":1,"round":2')
    return wire.Packet(header=header, array=whole.array)


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def an_update(house: House) -> wire.Packet:
    header = wire.UpdateHeader(
        run="r1",
        round=1,
        study_digest=house.study.digest,
        change=wire.ArrayInfo.of(house.initial),
        epsilon=0.1,
        steps=1,
    )
    return wire.pack(header, house.initial)


def a_refusal(house: House) -> wire.Packet:
    refusal = wire.Refusal(
        run="r1", round=1, study_digest=house.study.digest, code="policy", reason="No."
    )
    return wire.pack(refusal, None)


def swapped_weights(house: House) -> wire.Packet:
    """The hash that was allowed, over a folder with other weights."""
    folder = house.folder / "swapped"
    copytree(house.tiny.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.word_embeddings.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return house.request(house.tiny.study(model={"base": str(folder)}))


def pickled_weights(house: House) -> wire.Packet:
    folder = house.folder / "pickled"
    folder.mkdir()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    return house.request(house.tiny.study(model={"base": str(folder)}))


def no_such_folder(house: House) -> wire.Packet:
    return house.request(house.tiny.study(model={"base": "../../../etc"}))


def old_digest(house: House, **sections: dict | list) -> wire.Packet:
    """Another study under the digest that was agreed to."""
    study = house.tiny.study(**sections)
    return house.request(study, study_digest=house.study.digest)


def a_pickle(house: House) -> wire.Packet:
    body = pickle.dumps(np.ones(3))
    info = json.loads(house.request().header)["adapter"]
    header = json.loads(house.request().header)
    header["adapter"] = {**info, "sha256": hashlib.sha256(body).hexdigest()}
    return wire.Packet(header=json.dumps(header), array=body)


def short(house: House, missing: int) -> wire.Packet:
    whole = house.request()
    return wire.Packet(header=whole.header, array=whole.array[:-missing])


def doubles(house: House) -> wire.Packet:
    body = house.initial.flat.astype("<f8").tobytes()
    sha256 = hashlib.sha256(body).hexdigest()
    packet = house.adapter_says(sha256=sha256)
    return wire.Packet(header=packet.header, array=body)


def named_twice(house: House) -> wire.Packet:
    document = json.loads(house.study.canonical())
    document["institutions"] *= 2
    return house.study_text(canonical(document))


Attack = Callable[[House], wire.Packet]
OTHER = [{"name": "Another", "sector": "industry", "records": RECORDS}]
ATTACKS: dict[str, tuple[str, Attack]] = {
    # Another study than the one that was agreed to
    "another digest": ("study", lambda h: h.request(study_digest="0" * 64)),
    "less noise": ("study", lambda h: old_digest(h, privacy={"target_epsilon": 8.5})),
    "a larger delta": ("study", lambda h: old_digest(h, privacy={"target_delta": 1e-4})),
    "no noise": ("study", lambda h: old_digest(h, privacy={"mechanism": "none"})),
    "more steps": ("study", lambda h: old_digest(h, training={"local_steps": 20})),
    "another declared size": (
        "study",
        lambda h: old_digest(h, institutions=[{**CLINIC, "records": 24}]),
    ),
    "more clipping": ("study", lambda h: old_digest(h, privacy={"max_grad_norm": 1e6})),
    "metrics": ("study", lambda h: old_digest(h, evaluation={"site_metrics": "raw"})),
    # A study that has a digest of its own, but that the policy does not allow
    "less noise, said": (
        "policy",
        lambda h: h.request(h.tiny.study(privacy={"target_epsilon": 8.5})),
    ),
    "a larger delta, said": (
        "policy",
        lambda h: h.request(h.tiny.study(privacy={"target_delta": 2e-4})),
    ),
    "no noise, said": (
        "policy",
        lambda h: h.request(h.tiny.study(privacy={"mechanism": "none"})),
    ),
    "metrics, said": (
        "policy",
        lambda h: h.request(h.tiny.study(evaluation={"site_metrics": "raw"})),
    ),
    "a release for others": (
        "policy",
        lambda h: h.request(h.tiny.study(governance={"recipients": ["Press"]})),
    ),
    "a round beyond the end": ("study", lambda h: h.request(round=ROUNDS + 1)),
    "without this site": ("study", lambda h: h.request(h.tiny.study(institutions=OTHER))),
    "a data set that is not meant": (
        "data",
        lambda h: h.request(h.tiny.study(study={"dataset": "salaries"})),
    ),
    # Studies that no study file could be
    "an institution twice": ("study", named_twice),
    "not canonical": ("study", lambda h: h.study_text(json.dumps(h.study.model_dump_json()))),
    "a key twice": (
        "study",
        lambda h: h.study_text(
            h.study.canonical().replace('{"adapter"', '{"adapter":{},"adapter"')
        ),
    ),
    "a study nested deep": ("study", lambda h: h.study_text(nested(100_000))),
    "a key that steers a terminal": (
        "study",
        lambda h: h.study_says("study", **{"\x1b[2J": 1}),
    ),
    "a name that steers a terminal": (
        "study",
        lambda h: h.study_says("study", name="a\x1b[2J"),
    ),
    "a purpose that steers a terminal": (
        "study",
        lambda h: h.study_says("study", purpose="harmless\r\x1b[2K"),
    ),
    "a label written backwards": (
        "study",
        lambda h: h.study_says("task", labels=["mild", "\u202esevere"]),
    ),
    "a huge purpose": ("study", lambda h: h.study_says("study", purpose="x" * 1_000_000)),
    "a huge study": ("message", lambda h: h.altered(study="x" * (wire.MAX_STUDY + 1))),
    "a scale beyond numbers": ("study", lambda h: h.study_says("adapter", lora_alpha=10**400)),
    "steps without end": ("study", lambda h: h.study_says("training", local_steps=10**18)),
    "records without end": (
        "study",
        lambda h: h.study_text(
            h.study.canonical().replace('"records":120', f'"records":{10**30}')
        ),
    ),
    # Other base models
    "another base model": (
        "policy",
        lambda h: h.request(h.tiny.study(model={"sha256": "0" * 64})),
    ),
    "a base model without a hash": (
        "policy",
        lambda h: h.request(h.tiny.study(model={"sha256": None})),
    ),
    "other weights under the same hash": ("model", swapped_weights),
    "pickled weights": ("model", pickled_weights),
    "a folder somewhere": ("model", no_such_folder),
    "texts longer than the model": (
        "model",
        lambda h: h.request(h.tiny.study(training={"max_length": 512})),
    ),
    # Messages that are not what they say
    "another protocol": ("message", lambda h: h.altered(protocol=2)),
    "an update": ("message", an_update),
    "a refusal": ("message", a_refusal),
    "code": ("message", lambda h: h.altered(code="import os")),
    "a header nested deep": ("message", lambda _: wire.Packet(header=nested(100_000))),
    "a header that says two rounds": ("message", twice),
    "no header": ("message", lambda _: wire.Packet(header="")),
    "a run that is a path": ("message", lambda h: h.altered(run="../../policy")),
    "a run that steers a terminal": ("message", lambda h: h.altered(run="r1\x1b[2J")),
    "round zero": ("message", lambda h: h.altered(round=0)),
    "a round beyond numbers": ("message", lambda h: h.altered(round=10**30)),
    # Adapters
    "a pickle": ("message", a_pickle),
    "a byte short": ("message", lambda h: short(h, 1)),
    "a value short": ("message", lambda h: short(h, 4)),
    "doubles": ("message", doubles),
    "another array": ("message", lambda h: h.adapter_says(sha256="0" * 64)),
    "a terabyte": ("message", lambda h: h.adapter_says(names=["x"], shapes=[[500_000] * 2])),
    "more values than a number has digits": (
        "message",
        lambda h: h.adapter_says(names=["x"], shapes=[[10**4000] * 3]),
    ),
    "a tensor of many dimensions": (
        "message",
        lambda h: h.adapter_says(names=["x"], shapes=[[1] * 1000]),
    ),
    "names without shapes": ("message", lambda h: h.adapter_says(shapes=[])),
    "a tensor twice": ("message", lambda h: h.adapter_says(names=["x"] * 9)),
    "not a number": ("message", lambda h: h.request(h.study, values(h.initial, np.nan))),
    "infinite": ("message", lambda h: h.request(h.study, values(h.initial, -np.inf))),
    "other names": ("model", lambda h: h.request(h.study, renamed(h))),
    "another order": ("model", lambda h: h.request(h.study, reordered(h))),
    "other shapes": ("model", lambda h: h.request(h.study, reshaped(h))),
    "half an adapter": (
        "model",
        lambda h: h.request(h.study, h.initial.select(h.initial.manifest.names[1:])),
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_and_costs_nothing(house, attack):
    code, make = ATTACKS[attack]
    assert house.refused(make(house)).code == code


def test_what_is_on_the_sites_disk_is_not_told(house):
    """A folder that is there and one that is not are refused in the same words."""
    there = house.refused(pickled_weights(house)).reason
    assert house.refused(no_such_folder(house)).reason == there
    assert house.refused(swapped_weights(house)).reason == there


# Runs that go on otherwise than they began


def test_a_message_that_is_replayed_gets_the_same_bytes_and_costs_nothing(house):
    packet = house.request()
    first = house.site.answer(packet)
    spent = house.site.ledger.history("notes")
    for _ in range(3):
        assert house.site.answer(packet) == first
    assert house.site.ledger.history("notes") == spent
    assert len(list(house.home.outbox.iterdir())) == 1


def test_another_adapter_for_a_round_that_was_answered_gets_the_answer_that_was_given(house):
    first = house.site.answer(house.request())
    spent = house.site.ledger.history("notes")
    assert house.site.answer(house.request(house.study, values(house.initial, 9.0))) == first
    assert house.site.ledger.history("notes") == spent


def test_once_the_answer_is_gone_no_other_is_made(house):
    house.site.answer(house.request())
    for path in house.home.outbox.iterdir():
        path.unlink()
    assert house.refused(house.request()).code == "budget"
    other = house.request(house.study, values(house.initial, 9.0))
    assert house.refused(other).code == "budget"


def test_a_run_does_not_go_back(house):
    house.update(house.request(round=2))
    refusal = house.refused(house.request(round=1))
    assert (refusal.code, "does not go back" in refusal.reason) == ("study", True)
    house.update(house.request(round=3))
    assert house.site.answer(house.request(round=2)).array, "what was answered still is"


def test_a_runs_name_is_of_no_use_to_another_study(house):
    house.home.policy.write_text(f'models = ["{house.tiny.sha256}"]\nmax_epsilon = 100\n')
    house.update(house.request())
    other = house.tiny.study(privacy={"target_epsilon": 50.0})
    for number in (1, 2):
        refusal = house.refused(house.request(other, round=number))
        assert (refusal.code, "of another study" in refusal.reason) == ("study", True)


def test_new_names_for_a_run_buy_no_more_than_the_policy_gives(house):
    for number in range(1, ROUNDS + 1):
        house.update(house.request(round=number))
    for run in ("r2", "R1", "r1.", "-"):
        assert house.refused(house.request(run=run)).code == "budget"
    renamed = house.tiny.study(study={"name": "another"})
    assert house.refused(house.request(renamed, run="r9")).code == "budget"


def test_an_adapter_made_to_overflow_tells_of_no_record(house):
    """Values that no training gives: what comes back is noise, never that a record was there."""
    huge = Weights(house.initial.manifest, house.initial.flat.copy())
    for name, tensor in huge.tensors().items():
        if not house.study.trains(name, 1):
            tensor[:] = 3e38
    header, change = wire.unpack(house.site.answer(house.request(house.study, huge)))
    assert isinstance(header, wire.UpdateHeader), header
    assert change is not None
    assert change.is_finite()


def test_the_attacks_leave_a_site_that_still_works(house):
    for _, make in list(ATTACKS.values())[::6]:
        house.refused(make(copy.copy(house)))
    assert house.update(house.request()).steps == 2


# What was signed

KEY = identity.new_signing_key()
DECISIONS = {
    "never signed": (),
    "refused": ("refuse",),
    "signed, then withdrawn from": ("approve", "withdraw"),
    "signed, withdrawn from, then refused": ("approve", "withdraw", "refuse"),
}


@pytest.fixture
def signing(house):
    """The site with its own agreements, and what signs there."""
    agreements = Agreements(house.home.open_database())
    house.site = replace(house.site, agreed=agreements.require)

    def decide(kind, study=None):
        agreements.decide(KEY, INSTITUTION, study or house.study, kind)

    return decide


@pytest.mark.parametrize("name", DECISIONS)
def test_a_study_that_is_not_signed_now_is_refused_and_costs_nothing(house, signing, name):
    for kind in DECISIONS[name]:
        signing(kind)
    assert house.refused(house.request()).code == "policy"


def test_a_signature_on_one_study_is_none_on_another(house, signing):
    document = house.study.model_dump()
    document["study"]["purpose"] = house.study.study.purpose + "."
    signing("approve", type(house.study).model_validate(document))
    assert house.refused(house.request()).code == "policy"
    signing("approve")
    house.update(house.request())


def test_a_study_is_refused_from_the_moment_of_withdrawing(house, signing):
    signing("approve")
    house.update(house.request())
    signing("withdraw")
    assert house.refused(house.request(round=2)).code == "policy"
    # Not even what left before leaves again.
    assert house.refused(house.request()).code == "policy"
