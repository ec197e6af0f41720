"""Heads exchanged with a real control plane: each side holds what the other has shown."""

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from fedpact.client.heads import Heads, fetch
from fedpact.client.home import ClientHome
from fedpact.client.rotate import rotate
from fedpact.client.tables import TranscriptRow, exclusive
from fedpact.common.errors import AddressError, AuditError
from fedpact.common.transcript_check import compare, verify
from fedpact.common.transcript_store import transcript_of, write
from fedpact.server.tables import TranscriptRow as CoordinatorRow
from fedpact.server.tables import transaction
from support.control_plane import control_plane, joined


@pytest.fixture
def plane(tmp_path):
    with control_plane(tmp_path / "coordinator") as up:
        yield up


@pytest.fixture
def home(plane, tmp_path) -> ClientHome:
    return joined(plane, ClientHome(tmp_path / "site"), name="Clinic")


@pytest.fixture
def heads(home) -> Heads:
    return Heads(home, home.open_database())


def write_some(heads: Heads, count: int = 1) -> None:
    with exclusive(heads.engine, TranscriptRow.__tablename__) as session:
        for number in range(count):
            write(session, "settled", {"round": number})


def both(plane, heads):
    """The two transcripts, verified."""
    with Session(heads.engine) as session:
        mine = [f"{line}\n".encode() for line in transcript_of(session).lines(session)]
    theirs = [f"{line}\n".encode() for line in fetch(heads.home)]
    return verify(mine), verify(theirs)


def test_each_side_holds_the_heads_that_the_other_has_shown(plane, heads):
    assert heads.exchange()
    write_some(heads)
    assert heads.exchange()
    mine, theirs = both(plane, heads)
    assert (compare(mine, theirs), compare(theirs, mine)) == (2, 2)


def test_what_could_not_be_shown_is_still_news(tmp_path):
    with control_plane(tmp_path / "coordinator") as plane:
        home = joined(plane, ClientHome(tmp_path / "site"), name="Clinic")
        heads = Heads(home, home.open_database())
    with pytest.raises(AddressError):
        heads.exchange()
    assert heads.has_news()


def test_there_is_nothing_to_show_until_something_was_written(heads):
    assert heads.exchange()
    assert not heads.exchange()
    write_some(heads)
    assert heads.exchange()


def test_a_change_of_keys_does_not_break_the_record(plane, heads):
    heads.exchange()
    rotate(heads.home)
    write_some(heads)
    assert heads.exchange()
    mine, theirs = both(plane, heads)
    assert len(mine.keys) == 2
    assert compare(mine, theirs) == 2


def forget(engine, rows, number: int) -> None:
    with Session(engine) as session, session.begin():
        session.execute(delete(rows).where(rows.number >= number))


def test_a_site_that_shows_another_past_is_refused_and_both_heads_are_kept(plane, heads):
    write_some(heads, 3)
    heads.exchange()
    forget(heads.engine, TranscriptRow, 2)
    write_some(heads)
    with pytest.raises(AuditError, match="not its beginning"):
        heads.exchange()
    with transaction(plane.engine) as session:
        seen = [
            e
            for e in transcript_of(session).entries(session)
            if e.kind == "head-seen" and e.body["author"] == "Clinic"
        ]
    assert [entry.body["length"] for entry in seen] == [4, 3]


def test_a_coordinator_that_shows_another_past_is_found(plane, heads):
    heads.exchange()
    with transaction(plane.engine) as session:
        before = transcript_of(session).head(session).length
    forget(plane.engine, CoordinatorRow, before - 2)
    write_some(heads)
    with pytest.raises(AuditError, match="The coordinator shows a record"):
        heads.exchange()
