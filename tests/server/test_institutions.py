import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect, select

import fedpact.server
from fedpact.common.database import open_database
from fedpact.common.errors import AddressError, StorageError, TrustError, UsageError, WireError
from fedpact.common.identity import Role
from fedpact.common.invitation import Invitation, secret_sha256
from fedpact.common.study_parties import Sector
from fedpact.server import institutions
from fedpact.server.institutions import Keys
from fedpact.server.tables import Base, Institution, transaction

MIGRATIONS = Path(fedpact.server.__file__).parent / "migrations"
NODE = 2**64 - 1  # the largest that Flower gives
KEY, OTHER_KEY = Keys(b"key", b"signs"), Keys(b"other key", b"signs too")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_database(database_url, MIGRATIONS)
    yield opened
    opened.dispose()


def invite(
    engine: Engine,
    name: str = "A",
    *,
    days: float = 7,
    role: Role = Role.DATA_HOLDER,
) -> str:
    with transaction(engine) as session:
        token = institutions.invite(
            session,
            name,
            Sector.GOVERNMENT,
            role=role,
            address="localhost:9443",
            service="localhost:9444",
            fingerprint="ab" * 32,
            valid_for=timedelta(days=days),
        )
    return Invitation.decode(token).secret


def accept(engine: Engine, secret: str, key: Keys = KEY, node: int = NODE) -> str:
    with transaction(engine) as session:
        return institutions.accept(session, secret, key, lambda _: node).name


def test_migrations_make_the_table_that_the_code_describes(engine):
    columns = {c["name"]: c["nullable"] for c in inspect(engine).get_columns("institutions")}
    described = {c.name: c.nullable for c in Base.metadata.tables["institutions"].columns}
    assert columns == described


def test_the_secret_itself_is_nowhere_kept(engine):
    secret = invite(engine)
    with transaction(engine) as session:
        row = session.scalars(select(Institution)).one()
        kept = {name: getattr(row, name) for name in Institution.__table__.columns.keys()}  # noqa: SIM118
    assert secret_sha256(secret) in kept.values()
    assert all(secret not in str(value) for value in kept.values())


def test_moments_come_back_with_their_zone(engine):
    invite(engine, days=1)
    with transaction(engine) as session:
        row = session.scalars(select(Institution)).one()
        assert row.expires_at - row.invited_at == timedelta(days=1)
        assert abs(datetime.now(UTC) - row.invited_at) < timedelta(minutes=1)


def test_whoever_has_the_secret_joins_once(engine):
    secret = invite(engine)
    assert accept(engine, secret) == "A"
    assert institutions.node_ids(engine, {"A", "B"}) == {"A": NODE}
    with transaction(engine) as session:
        assert institutions.joined_keys(session) == {KEY.node}
    with pytest.raises(TrustError, match="used already"):
        accept(engine, secret, OTHER_KEY)


def test_the_same_key_may_ask_again_and_is_not_registered_again(engine):
    secret = invite(engine)
    accept(engine, secret, node=7)
    accept(engine, secret, node=8)
    assert institutions.node_ids(engine, {"A"}) == {"A": 7}


def test_two_at_once_are_not_both_taken(engine):
    secret = invite(engine)
    started = threading.Barrier(2)
    outcomes = []

    def register(_key: bytes) -> int:
        outcomes.append("registered")
        return 1

    def attempt(key: Keys) -> None:
        started.wait()
        try:
            with transaction(engine) as session:
                institutions.accept(session, secret, key, register)
        except (TrustError, StorageError) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=attempt, args=(key,)) for key in (KEY, OTHER_KEY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["TrustError", "registered"]


def test_an_unknown_or_expired_secret_is_refused(engine):
    with pytest.raises(TrustError, match="not valid"):
        accept(engine, "unknown")
    with pytest.raises(TrustError, match="expired on"):
        accept(engine, invite(engine, days=-1))


def test_an_invitation_stays_unused_if_superlink_is_away(engine):
    secret = invite(engine)

    def register(_key: bytes) -> int:
        raise AddressError("SuperLink does not answer.")

    with pytest.raises(AddressError), transaction(engine) as session:
        institutions.accept(session, secret, KEY, register)
    assert institutions.node_ids(engine, {"A"}) == {}
    assert accept(engine, secret, OTHER_KEY) == "A"


def test_a_newer_invitation_replaces_the_older(engine):
    old, new = invite(engine), invite(engine)
    with pytest.raises(TrustError, match="replaced"):
        accept(engine, old)
    assert accept(engine, new) == "A"


def test_who_has_joined_is_not_invited_again_unless_revoked(engine):
    accept(engine, invite(engine))
    with pytest.raises(UsageError, match="has joined already"):
        invite(engine)
    with transaction(engine) as session:
        institutions.revoke(session, "A")
    accept(engine, invite(engine), OTHER_KEY, node=5)
    assert institutions.node_ids(engine, {"A"}) == {"A": 5}


def test_revoking_shuts_out_a_site_and_withdraws_an_invitation(engine):
    secret = invite(engine, "B")
    accept(engine, invite(engine, "A"))
    for name in ("A", "B"):
        with transaction(engine) as session:
            institutions.revoke(session, name)
    with transaction(engine) as session:
        assert [row.state for row in institutions.list_institutions(session)] == ["revoked"] * 2
        assert institutions.joined_keys(session) == frozenset()
    assert institutions.node_ids(engine, {"A"}) == {}
    with pytest.raises(TrustError, match="not valid"):
        accept(engine, secret)
    with pytest.raises(UsageError, match="never invited"), transaction(engine) as session:
        institutions.revoke(session, "C")


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, "a\nb"])
def test_names_that_a_table_cannot_show_are_refused(engine, name):
    with pytest.raises(UsageError, match="printable"):
        invite(engine, name)


def test_sites_that_superlink_forgot_are_registered_again(engine):
    accept(engine, invite(engine, "A"), KEY, node=1)
    accept(engine, invite(engine, "B"), OTHER_KEY, node=2)
    invite(engine, "C")
    with transaction(engine) as session:
        forgotten = institutions.register_missing(session, {KEY.node: 1}, lambda _: 9)
    assert forgotten == ["B"]
    assert institutions.node_ids(engine, {"A", "B", "C"}) == {"A": 1, "B": 9}


def rotate(engine: Engine, signing_key: bytes, keys: Keys, node: int = 8):
    with transaction(engine) as session:
        row, before = institutions.rotate(session, signing_key, keys, lambda _: node)
        return row.name, before


def test_new_keys_take_the_place_of_the_old_ones(engine):
    accept(engine, invite(engine), node=7)
    assert rotate(engine, KEY.signing, OTHER_KEY) == ("A", 7)
    with transaction(engine) as session:
        assert institutions.joined_keys(session) == {OTHER_KEY.node}
    assert institutions.node_ids(engine, {"A"}) == {"A": 8}
    with pytest.raises(TrustError, match="nobody's"):
        rotate(engine, KEY.signing, OTHER_KEY)
    assert rotate(engine, OTHER_KEY.signing, OTHER_KEY, node=9) == ("A", None)
    assert institutions.node_ids(engine, {"A"}) == {"A": 8}


def test_of_two_rotations_at_once_one_counts(engine):
    accept(engine, invite(engine), node=7)
    started, outcomes = threading.Barrier(2), []
    third = Keys(b"third", b"signs as well")

    def attempt(keys: Keys) -> None:
        started.wait()
        try:
            rotate(engine, KEY.signing, keys)
            outcomes.append("changed")
        except (TrustError, StorageError) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=attempt, args=(keys,)) for keys in (OTHER_KEY, third)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("changed") == 1


def test_whoever_was_shut_out_changes_no_keys(engine):
    accept(engine, invite(engine))
    with transaction(engine) as session:
        assert institutions.revoke(session, "A") == NODE
    with pytest.raises(TrustError, match="nobody's"):
        rotate(engine, KEY.signing, OTHER_KEY)


def test_roles_without_a_site_have_no_node(engine):
    secret = invite(engine, role=Role.AUDITOR)
    with pytest.raises(WireError, match="no node key"):
        accept(engine, secret)
    accept(engine, secret, Keys(b"", b"signs"))
    assert institutions.node_ids(engine, {"A"}) == {}
    with pytest.raises(WireError, match="missing"):
        accept(engine, invite(engine, "B"), Keys(b"", b"signs too"))


def test_nobody_is_called_as_the_coordinator_is(engine):
    with pytest.raises(UsageError, match="coordinator itself"):
        invite(engine, "Coordinator")
