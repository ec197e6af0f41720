import pytest

from fedpact.common import certificates
from fedpact.common.errors import StorageError, TrustError, UsageError
from fedpact.common.identity import public_bytes
from fedpact.common.private_files import write_private
from fedpact.server import home as homes
from fedpact.server.home import ServerHome


@pytest.fixture
def home(tmp_path) -> ServerHome:
    return homes.init(tmp_path / "server", "fed.example.org", 9443)


def test_init_makes_a_whole_coordinator(home):
    settings = home.settings()
    assert settings.address == "fed.example.org:9443"
    assert settings.service_address == "fed.example.org:9444"
    assert settings.listen == "0.0.0.0"  # noqa: S104
    assert settings.max_message == 64 << 20
    assert home.database_url() == f"sqlite:///{home.folder}/fedpact.db"
    home.check_certificates()
    home.open_database().dispose()


def test_only_the_owner_reads_it(home):
    for path in home.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_local_coordinator_listens_on_loopback_alone(tmp_path):
    home = homes.init(tmp_path, "localhost", 9443)
    assert home.settings().listen == "127.0.0.1"
    assert homes.init(tmp_path / "b", "::1", 1).settings().address == "[::1]:1"


def test_init_refuses_where_a_coordinator_is(home):
    before = home.ca.read_bytes()
    with pytest.raises(UsageError, match="already"):
        homes.init(home.folder, "elsewhere", 1)
    assert home.ca.read_bytes() == before


@pytest.mark.parametrize(
    ("host", "port"), [("", 1), ("a b", 1), ("a", 0), ("a", 65536), ("a", 9444)]
)
def test_init_refuses_what_cannot_be_dialled_and_leaves_nothing(tmp_path, host, port):
    with pytest.raises(UsageError):
        homes.init(tmp_path / "new", host, port)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        homes.init(tmp_path / "file" / "server", "a", 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("host = 1", "host"),
        ("hosts = 'a'", "host"),
        ("host = 'a'\nprot = 1", "prot"),
        ("host = ", "cannot be read"),
        ("host = 'a'\nport = 70000", "port"),
        ("host = 'a'\nport = 9444", "port and service_port are the same"),
    ],
)
def test_settings_that_are_not_valid_are_named(home, content, sentence):
    home.settings_file.write_text(content)
    with pytest.raises(UsageError, match=sentence):
        home.settings()


def test_a_folder_without_a_coordinator_is_said_to_have_none(tmp_path):
    with pytest.raises(UsageError, match="There is no coordinator"):
        ServerHome(tmp_path).settings()


def test_the_database_may_be_elsewhere(tmp_path):
    home = homes.init(tmp_path, "a", 1, database="postgresql+psycopg://u:p@h/n")
    assert home.database_url() == "postgresql+psycopg://u:p@h/n"


def test_an_expired_certificate_is_said_and_renewed_under_the_same_ca(home):
    ca = home.ca.read_bytes()
    homes.renew(home, "fed.example.org", days=-1)
    with pytest.raises(TrustError, match=r"The server's certificate expired on .*--renew"):
        home.check_certificates()
    homes.renew(home, "fed.example.org")
    home.check_certificates()
    assert home.ca.read_bytes() == ca
    assert home.server_certificate.read_bytes().endswith(ca)


def test_certificate_and_key_must_belong_together(home):
    write_private(home.server_key, certificates.private_pem(certificates.new_key()))
    with pytest.raises(TrustError, match="not the key of"):
        home.check_certificates()
    home.server_certificate.write_bytes(
        certificates.certificate_pem(certificates.make_authority("x")[0])
    )
    with pytest.raises(TrustError, match="not issued by"):
        home.check_certificates()


def test_the_coordinator_signs_with_one_key(home):
    key = homes.load_signing_key(home)
    assert public_bytes(homes.load_signing_key(home)) == public_bytes(key)
    home.signing_key.unlink()  # as in a folder that an earlier fedpact made
    assert public_bytes(homes.load_signing_key(home)) != public_bytes(key)
    assert home.signing_key.stat().st_mode & 0o077 == 0


def test_nobody_serves_whatever_a_file_says(home):
    assert home.serving() is None
    home.lock.touch()
    home.serving_file.write_text(
        '{"pid":1,"address":"a:1","service":"a:2","superlink":"b:2","superlink_pid":2}'
    )
    assert home.serving() is None
