"""The doctor of a site, with a real coordinator, and with everything that can be broken."""

import json
import shutil
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tomli_w

from fedpact.client.datasets import Datasets
from fedpact.client.doctor import Finding, Patient, examine
from fedpact.client.home import ClientHome
from fedpact.client.join import read_settings
from fedpact.common import certificates
from fedpact.common.identity import Role
from fedpact.common.study_learning import BaseModelRef
from fedpact.server import institutions
from fedpact.server.tables import transaction
from support.coordinator import Coordinator, make_home, serving
from support.federation import fedpact
from support.processes import free_port
from support.site_factory import write_csv

pytestmark = pytest.mark.e2e

THERE = ("connection", "identity", "certificates", "clock", "control plane", "SuperLink")


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory) -> Iterator[Coordinator]:
    with serving(make_home(tmp_path_factory.mktemp("coordinator") / "server")) as running:
        yield running


@pytest.fixture(scope="module")
def _joined(coordinator, tmp_path_factory) -> Path:
    """A site's folder with which nothing is wrong; tests break copies of it."""
    folder = tmp_path_factory.mktemp("site")
    coordinator.joined("Clinic", folder / "home")
    home = ClientHome(folder / "home")
    home.policy.write_text("max_epsilon = 3.0\n", encoding="utf-8")
    engine = home.open_database()
    Datasets(engine).add("notes", write_csv(folder / "notes.csv", 120))
    engine.dispose()
    return folder


@pytest.fixture
def home(_joined, tmp_path) -> ClientHome:
    shutil.copytree(_joined / "home", tmp_path / "home")
    return ClientHome(tmp_path / "home")


def states(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: found.state for name, found in findings.items()}


def wrong(home: ClientHome, *names: str, **how: object) -> list[Finding]:
    """Examine; exactly these checks are wrong, and each says what to do."""
    findings = examine(Patient(home, **how))
    found = [name for name, finding in findings.items() if finding.state == "wrong"]
    assert found == list(names), findings
    for name in names:
        assert findings[name].found
        assert findings[name].advice
    return [findings[name] for name in names]


def rewrite(home: ClientHome, **changes: str) -> None:
    """Change `site.toml`."""
    settings = read_settings(home).model_copy(update=changes)
    home.site.write_text(tomli_w.dumps(settings.model_dump(mode="json")), encoding="utf-8")


def test_nothing_is_wrong_and_nothing_is_changed(home, tiny, coordinator):
    before = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    model = BaseModelRef(base=str(tiny.folder), sha256=tiny.sha256)
    findings = examine(Patient(home, [model]))
    assert set(states(findings).values()) <= {"ok", "warn"}, findings
    assert states(findings).keys() >= {*THERE, "joined", "keys", "models", "device"}
    assert findings["control plane"].found == "it knows this site as Clinic (data-holder)"
    assert tiny.sha256[:12] in findings["models"].found
    after = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    assert after == before
    with coordinator.control() as control:
        nodes = {str(node.node_id): node.status for node in control.nodes()}
    assert nodes[read_settings(home).node_id] == "registered", "it must not look online"


def test_the_command_prints_json_and_ends_with_one_if_anything_is_wrong(home, tiny):
    place = ("--home", str(home.folder), "--format", "json", "--model", str(tiny.folder))
    done = fedpact("client", "doctor", *place)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert rows[0]["check"] == "joined"
    assert all(row.keys() == {"check", "state", "found", "advice"} for row in rows)
    home.policy.write_text("max_epsilonn = 1\n", encoding="utf-8")
    done = fedpact("client", "doctor", *place)
    assert done.returncode == 1
    (bad,) = [row for row in json.loads(done.stdout) if row["state"] == "wrong"]
    assert bad["check"] == "policy"
    assert "did you mean max_epsilon?" in bad["found"]


def test_an_unresolvable_name_is_said_and_what_needs_it_is_skipped(home):
    # In a process of its own: a test may ask for no name but this machine's.
    rewrite(home, coordinator="fedpact.invalid:9443")
    done = fedpact("client", "doctor", "--home", str(home.folder), "--format", "json")
    assert done.returncode == 1
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert rows["name"]["state"] == "wrong"
    assert "fedpact.invalid leads to no address" in rows["name"]["found"]
    assert {rows[check]["state"] for check in THERE} == {"skipped"}
    assert rows["data sets"]["state"] == "ok"


def test_a_site_that_never_joined_is_told_so_first(tmp_path):
    folder = ClientHome(tmp_path / "nowhere")
    (found,) = wrong(folder, "joined")
    assert "fedpact client join" in found.advice
    assert not folder.folder.exists()


def test_a_port_where_nobody_answers(home):
    rewrite(home, coordinator=f"localhost:{free_port()}")
    (found,) = wrong(home, "connection")
    assert "cannot be reached" in found.found


def test_a_proxy_that_cannot_be_reached(home, monkeypatch):
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("https_proxy", raising=False)
    (found,) = wrong(home, "proxy")
    assert "HTTPS_PROXY" in found.advice
    monkeypatch.setenv("NO_PROXY", "localhost")
    wrong(home)


def test_another_coordinator_with_another_ca(home):
    authority, _ = certificates.make_authority("another")
    home.ca.write_bytes(certificates.certificate_pem(authority))
    (found,) = wrong(home, "joined")
    assert "not the CA that this site joined" in found.found
    rewrite(home, ca_fingerprint=certificates.fingerprint(authority))
    (found,) = wrong(home, "identity")
    assert "another fingerprint" in found.found


@contextmanager
def tls_server(folder: Path, days: int) -> Iterator[tuple[str, bytes]]:
    """A server with a certificate for so many days; its address and its CA's PEM."""
    authority, authority_key = certificates.make_authority("somebody")
    server, key = certificates.make_server_certificate(
        authority, authority_key, ["localhost"], days=days
    )
    chain = b"".join(certificates.certificate_pem(c) for c in (server, authority))
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(certificates.private_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"localhost:{http.server_port}", certificates.certificate_pem(authority)
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(("days", "state"), [(-1, "wrong"), (10, "warn"), (100, "ok")])
def test_how_long_a_certificate_is_valid(home, tmp_path, days, state):
    with tls_server(tmp_path, days) as (address, ca):
        home.ca.write_bytes(ca)
        fingerprint = certificates.fingerprint(certificates.load_certificate(home.ca))
        rewrite(home, coordinator=address, ca_fingerprint=fingerprint)
        finding = examine(Patient(home))["certificates"]
    assert finding.state == state
    assert ("expired on" in finding.found) == (days < 0)
    assert ("fedpact server init --renew" in finding.advice) == (state != "ok")


@pytest.mark.parametrize(("minutes", "state"), [(-10, "wrong"), (10, "wrong"), (1, "warn")])
def test_a_clock_that_is_off(home, minutes, state):
    findings = examine(Patient(home, clock_ahead=timedelta(minutes=minutes)))
    assert findings["clock"].state == state
    assert ("behind" in findings["clock"].found) == (minutes < 0)
    skipped = {"control plane", "versions", "SuperLink"} if state == "wrong" else set()
    assert {n for n, f in findings.items() if f.state == "skipped"} == skipped


def test_a_site_that_was_revoked(coordinator, tmp_path):
    coordinator.joined("Revoked", tmp_path / "home")
    engine = coordinator.home.open_database()
    with transaction(engine) as session:
        institutions.revoke(session, "Revoked")
    engine.dispose()
    # The gateway reads the keys again every second.
    found = wrong(ClientHome(tmp_path / "home"), "control plane", "SuperLink")
    assert "does not accept this site's key" in found[1].found


def test_keys_that_others_can_read_or_that_are_gone(home):
    home.private_key.chmod(0o644)
    (found,) = wrong(home, "keys")
    assert f"chmod 600 {home.signing_key} {home.private_key}" in found.advice
    home.private_key.chmod(0o600)
    home.public_key.write_bytes(certificates.public_pem(certificates.new_key().public_key()))
    wrong(home, "keys")
    home.signing_key.unlink()
    findings = examine(Patient(home))
    assert findings["keys"].state == "wrong"
    assert findings["connection"].state == "ok"


def test_an_auditor_has_no_node(coordinator, tmp_path):
    coordinator.joined("Court", tmp_path / "home", role=Role.AUDITOR)
    findings = examine(Patient(ClientHome(tmp_path / "home")))
    assert "wrong" not in states(findings).values()
    assert findings["SuperLink"].found == "as auditor, this institution runs no site"


def test_a_database_that_cannot_be_written(home):
    url = f"sqlite:///file:{home.folder / 'fedpact.db'}?mode=ro&uri=true"
    (found,) = wrong(ClientHome(home.folder, url), "database")
    assert "readonly" in found.found


def test_a_database_that_is_damaged_or_at_another_migration(home):
    engine = home.open_database()
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE fedpact_client_version SET version_num = '0000'")
    engine.dispose()
    finding = examine(Patient(home))["database"]
    assert finding.state == "warn"
    assert "0000" in finding.found
    for path in home.folder.glob("fedpact.db-*"):
        path.unlink()
    (home.folder / "fedpact.db").write_bytes(b"not a database at all" * 100)
    findings = examine(Patient(home))
    assert (findings["database"].state, findings["data sets"].state) == ("wrong", "skipped")


def test_a_data_set_whose_file_changed_or_is_gone(home, tmp_path):
    engine = home.open_database()
    Datasets(engine).add("other", write_csv(tmp_path / "other.csv", 120, salt="x"))
    engine.dispose()
    write_csv(tmp_path / "other.csv", 121)
    (found,) = wrong(home, "data sets")
    assert "its content has changed" in found.found
    assert "dataset add other" in found.advice
    (tmp_path / "other.csv").unlink()
    (found,) = wrong(home, "data sets")
    assert f"There is no file {tmp_path / 'other.csv'}" in found.found


def models(*references: BaseModelRef) -> dict[str, Sequence[BaseModelRef]]:
    return {"models": references}


def test_a_model_that_is_not_here_or_another(home, tiny, tmp_path):
    wrong(home, **models(BaseModelRef(base=str(tiny.folder))))
    (found,) = wrong(
        home, "models", **models(BaseModelRef(base=str(tiny.folder), sha256="0" * 64))
    )
    assert "the study says" in found.found
    findings = examine(Patient(home, [BaseModelRef(base=str(tmp_path / "nowhere"))]))
    assert findings["models"].state == "wrong"
