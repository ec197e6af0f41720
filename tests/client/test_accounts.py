"""Statements of what studies have cost: signed at the site, kept by the coordinator, read by auditors."""

from datetime import timedelta

import pytest
from typer.testing import CliRunner

from fedpact.client.accounts import Accounts, listed
from fedpact.client.cli import client_app
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.join import load_site
from fedpact.client.ledger import Ledger
from fedpact.client.service import Service
from fedpact.common import identity
from fedpact.common.errors import TrustError, WireError
from fedpact.common.identity import Role
from fedpact.common.planned import plan
from fedpact.common.spending import Spending
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.server.cli import server_app
from support.control_plane import control_plane, joined
from support.site_factory import INSTITUTION, a_study, write_csv


@pytest.fixture
def plane(tmp_path):
    with control_plane(tmp_path / "coordinator") as up:
        yield up


@pytest.fixture
def accounts(plane, tmp_path) -> Accounts:
    """A site whose ledger has one round that ran and one that never ended."""
    home = joined(plane, ClientHome(tmp_path / "site"), name=INSTITUTION)
    engine, study = home.open_database(), a_study()
    Datasets(engine).add("secret-name", write_csv(tmp_path / "records.csv"))
    ledger, mechanism = Ledger(engine), plan(study, INSTITUTION)
    for number in (1, 2):
        reserved = ledger.reserve("secret-name", study, "r1", number, mechanism, cap=10.0)
        if number == 1:
            ledger.settle(reserved, mechanism.steps)
    return Accounts(home, engine)


def test_an_auditor_reads_what_the_site_has_signed(plane, accounts, tmp_path):
    accounts.submit()
    auditor = joined(plane, ClientHome(tmp_path / "auditor"), Role.AUDITOR, "Regulator")
    (found,) = listed(auditor)
    (study,) = found.studies
    expected = Ledger(accounts.engine).spent_by_study("secret-name", a_study().digest, 1e-5)
    assert (found.institution, study.study_digest) == (INSTITUTION, a_study().digest)
    assert (study.rounds, study.unsettled, study.unit) == (2, 1, "record")
    assert (study.epsilon, study.delta) == (expected, 1e-5)
    shown = CliRunner().invoke(client_app, ["statements", "--home", str(auditor.folder)])
    assert (shown.exit_code, INSTITUTION in shown.output) == (0, True)
    shown = CliRunner().invoke(server_app, ["statements", "--home", str(plane.home.folder)])
    assert (shown.exit_code, INSTITUTION in shown.output) == (0, True)


def test_a_statement_names_no_data_set(accounts):
    text = accounts.spending().text()
    assert "secret-name" not in text
    assert "1000" not in text


def test_a_data_holder_does_not_read_the_others(accounts):
    with pytest.raises(TrustError, match="may not"):
        listed(accounts.home)


def submit(home, text: str, signature: bytes) -> None:
    request = pb.SubmitStatementRequest(statement=text, signature=signature)
    with Service.of(home) as service:
        service.federation.SubmitStatement(request)


def test_what_is_not_the_callers_own_newest_statement_is_refused(accounts):
    spending, key = accounts.spending(), load_site(accounts.home).signing_key
    other = spending.model_copy(update={"institution": "Somebody Else"})
    older = spending.model_copy(update={"moment": spending.moment - timedelta(days=1)})
    with pytest.raises(TrustError, match="not signed"):
        submit(accounts.home, spending.text(), spending.sign(identity.new_signing_key()))
    with pytest.raises(TrustError, match="not signed"):
        submit(accounts.home, spending.text().replace("1e-05", "1e-06"), spending.sign(key))
    with pytest.raises(TrustError, match="Somebody Else"):
        submit(accounts.home, other.text(), other.sign(key))
    submit(accounts.home, spending.text(), spending.sign(key))
    with pytest.raises(TrustError, match="newer"):
        submit(accounts.home, older.text(), older.sign(key))


@pytest.mark.parametrize("text", ["", "{}", '{"a":1}', "[]", "nonsense"])
def test_a_signed_text_that_is_no_statement_is_refused(text):
    key = identity.new_signing_key()
    signature = identity.sign(key, "statement", text.encode())
    with pytest.raises(WireError):
        Spending.read(text, identity.public_bytes(key), signature)
