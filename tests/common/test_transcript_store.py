"""A transcript in a database: one chain, whoever writes, together with what it records."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, text
from sqlalchemy.orm import Session

from fedpact.client.home import MIGRATIONS as CLIENT
from fedpact.client.tables import Base as ClientBase
from fedpact.client.tables import TranscriptRow as ClientRow
from fedpact.common.database import open_database
from fedpact.common.errors import AuditError, StorageError, TrustError
from fedpact.common.identity import public_bytes
from fedpact.common.transcript import NO_HASH, Head
from fedpact.common.transcript_check import require_held, verify
from fedpact.common.transcript_store import TranscriptStore
from fedpact.server.home import MIGRATIONS as SERVER
from fedpact.server.tables import Base as ServerBase
from fedpact.server.tables import TranscriptRow as ServerRow

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
ROOMS = {
    "client": (CLIENT, ClientRow, ClientBase),
    "server": (SERVER, ServerRow, ServerBase),
}


@pytest.fixture(params=ROOMS)
def room(request):
    return ROOMS[request.param]


@pytest.fixture
def engine(database_url, room):
    opened = open_database(database_url, room[0])
    yield opened
    opened.dispose()


@pytest.fixture
def store(room):
    return TranscriptStore.of(room[1], "North", KEY)


def exported(store, engine, path):
    with Session(engine) as session:
        store.export(session, path)
        head = store.head(session)
    with path.open("rb") as lines:
        found = verify(lines, KEY.public_key())
    assert found.head == head
    return found


def test_the_migrations_make_the_table(engine, room):
    name = room[1].__tablename__

    def mine(thing, thing_name, kind, reflected, compared):
        return thing_name == name if kind == "table" else thing.table.name == name

    with engine.connect() as connection:
        options = {"compare_type": True, "include_object": mine}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, room[2].metadata) == []


def test_what_is_written_is_a_chain_that_verifies(engine, store, tmp_path):
    with Session(engine) as session, session.begin():
        first = store.append(session, "invited", {"study": "Örebro", "nul": "\0"})
        second = store.append(session, "joined", {"epsilon": 0.1})
    with Session(engine) as session, session.begin():
        third = store.append(session, "run-ended", {})
    assert [e.number for e in (first, second, third)] == [0, 1, 2]
    assert [e.previous for e in (first, second, third)] == [NO_HASH, first.hash, second.hash]
    with Session(engine) as session:
        assert list(store.entries(session)) == [first, second, third]
        assert list(store.entries(session, start=2)) == [third]
        head = store.head(session)
    assert (head.length, head.hash) == (3, third.hash)
    assert exported(store, engine, tmp_path / "north.jsonl").head == head


def test_a_transcript_without_entries_can_be_exported(engine, store, tmp_path):
    assert exported(store, engine, tmp_path / "north.jsonl").head.length == 0


def test_an_entry_is_there_with_what_it_records_or_not_at_all(engine, store, tmp_path):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE facts (x INTEGER)"))

    def record(x):
        with Session(engine) as session, session.begin():
            session.execute(text("INSERT INTO facts VALUES (:x)"), {"x": x})
            store.append(session, "settled", {"x": x})
            if x == 2:
                raise RuntimeError("after both were written")

    record(1)
    with pytest.raises(RuntimeError):
        record(2)
    record(3)
    with Session(engine) as session:
        assert list(session.scalars(text("SELECT x FROM facts ORDER BY x"))) == [1, 3]
        assert [entry.body["x"] for entry in store.entries(session)] == [1, 3]
    assert len(exported(store, engine, tmp_path / "north.jsonl").hashes) == 2


def test_a_refused_entry_leaves_the_chain_as_it_was(engine, store, tmp_path):
    with Session(engine) as session, session.begin():
        store.append(session, "invited", {})
        with pytest.raises(AuditError):
            store.append(session, "settled", {"x": float("nan")})
        store.append(session, "run-ended", {})
    assert len(exported(store, engine, tmp_path / "north.jsonl").hashes) == 2


def test_many_who_write_at_once_do_not_fork_the_chain(engine, store, tmp_path):
    writers, each = 6, 15
    start = threading.Barrier(writers)

    def write(writer):
        start.wait()
        for count in range(each):
            with Session(engine) as session, session.begin():
                # As a caller does: it reads something first, and writes twice.
                store.head(session)
                store.append(session, "reserved", {"writer": writer, "count": count})
                store.append(session, "settled", {"writer": writer, "count": count})

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    assert len(exported(store, engine, tmp_path / "north.jsonl").hashes) == writers * each * 2
    with Session(engine) as session:
        entries = list(store.entries(session))
    for reserved, settled in zip(entries[::2], entries[1::2], strict=True):
        assert (reserved.kind, settled.kind) == ("reserved", "settled")
        assert reserved.body == settled.body


def test_readers_do_not_wait_for_a_writer(engine, store):
    with Session(engine) as writing, writing.begin():
        store.append(writing, "invited", {})
        with Session(engine) as reading:
            assert store.head(reading).length == 0


def test_a_file_is_of_one_moment(engine, store):
    """Entries that are written while the file is do not make its head another's."""
    with Session(engine) as session, session.begin():
        store.append(session, "invited", {})
    with Session(engine) as reading:
        lines = store.lines(reading)
        begun = [next(lines), next(lines)]
        with Session(engine) as other, other.begin():
            store.append(other, "joined", {})
        whole = verify(f"{line}\n".encode() for line in (*begun, *lines))
    assert len(whole.hashes) in {1, 2}


def change(row, session):
    session.get(row, 1).line = session.get(row, 1).line.replace('"x":1', '"x":7')


def remove(row, session):
    session.execute(delete(row).where(row.number == 1))


@pytest.mark.parametrize("tamper", [change, remove])
def test_a_row_changed_in_the_database_is_found_in_the_export(engine, store, tmp_path, tamper):
    with Session(engine) as session, session.begin():
        for x in range(4):
            store.append(session, "settled", {"x": x})
    with Session(engine) as session, session.begin():
        tamper(store.rows, session)
    with pytest.raises(AuditError, match="Entry 1 of North does not fit"):
        exported(store, engine, tmp_path / "north.jsonl")


def test_an_export_that_cannot_be_written_is_said_and_leaves_nothing(engine, store, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "x.jsonl", tmp_path / "folder"):
        with Session(engine) as session, pytest.raises(StorageError):
            store.export(session, path)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_two_rooms_may_share_a_database(database_url, tmp_path):
    engines = [open_database(database_url, migrations) for migrations, _, _ in ROOMS.values()]
    stores = [TranscriptStore.of(row, room, KEY) for room, (_, row, _) in ROOMS.items()]
    for engine, store in zip(engines, stores, strict=True):
        with Session(engine) as session, session.begin():
            store.append(session, "invited", {})
    for engine, store in zip(engines, stores, strict=True):
        assert exported(store, engine, tmp_path / store.author).author == store.author
        engine.dispose()


# Keys that change


def rotate(store, engine, key) -> None:
    with Session(engine) as session, session.begin():
        store.append(session, "rotated", {"key": public_bytes(key).hex()})


def test_after_a_change_of_keys_it_goes_on_with_the_next_one(room, engine, tmp_path):
    new, hand = Ed25519PrivateKey.from_private_bytes(b"n" * 32), [KEY]
    store = TranscriptStore(room[1], "North", lambda: hand)
    with Session(engine) as session, session.begin():
        store.append(session, "joined", {})
        before = store.head(session)
    rotate(store, engine, new)
    # While keys are being changed both are at hand; it does not matter which comes first.
    for keys in ([KEY, new], [new, KEY], [new]):
        hand[:] = keys
        with Session(engine) as session, session.begin():
            store.append(session, "settled", {})
            assert store.goes_on_with(session) == public_bytes(new)

    found = exported(store, engine, tmp_path / "t.jsonl")
    assert [start for start, _ in found.keys] == [0, 2]
    assert found.key == new.public_key()
    require_held(found, before, where="what was seen before")
    forged = Head.sign(KEY, author="North", length=3, last=found.hashes[2].hex())
    with pytest.raises(AuditError, match="not signed"):
        require_held(found, forged, where="what the old key signed")


def test_a_key_that_was_given_up_signs_nothing_any_more(store, engine):
    with Session(engine) as session, session.begin():
        store.append(session, "joined", {})
    rotate(store, engine, Ed25519PrivateKey.generate())
    with Session(engine) as session, pytest.raises(TrustError, match="not at hand"):
        store.append(session, "settled", {})


def test_a_transcript_is_pinned_to_any_key_that_its_author_had(store, engine, tmp_path):
    new = Ed25519PrivateKey.generate()
    with Session(engine) as session, session.begin():
        store.append(session, "joined", {})
    rotate(store, engine, new)
    after, path = replace(store, keys=lambda: (new,)), tmp_path / "t.jsonl"
    with Session(engine) as session:
        after.export(session, path)
    for key in (KEY, new):
        assert verify(path.open("rb"), key.public_key()).author == "North"
    with pytest.raises(AuditError, match="another key"):
        verify(path.open("rb"), Ed25519PrivateKey.generate().public_key())


def test_the_first_entry_cannot_change_the_key(store, engine):
    with Session(engine) as session, pytest.raises(AuditError, match="signed nothing"):
        store.append(session, "rotated", {"key": "0" * 64})
