import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives import asymmetric

from fedpact.common import certificates
from fedpact.common.errors import TrustError


@pytest.fixture(scope="module")
def authority():
    return certificates.make_authority("a coordinator")


def test_server_certificate_names_its_hosts_and_this_machine(authority):
    server, _ = certificates.make_server_certificate(
        *authority, ["fed.example.org", "192.0.2.7"]
    )
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    addresses = [str(a) for a in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["192.0.2.7", "127.0.0.1", "::1"]


def test_openssl_accepts_the_chain_in_strict_mode(authority, tmp_path):
    ca, _ = authority
    server, key = certificates.make_server_certificate(*authority, ["localhost"])
    (tmp_path / "ca.pem").write_bytes(certificates.certificate_pem(ca))
    (tmp_path / "server.pem").write_bytes(certificates.certificate_pem(server))
    (tmp_path / "server.key").write_bytes(certificates.private_pem(key))
    listener = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listener.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    assert _handshake(listener, client, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(listener, client, "elsewhere.example.org")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                continue
    return not sides


def test_keys_are_those_that_flower_reads():
    key = certificates.new_key()
    read = asymmetric.bytes_to_private_key(certificates.private_pem(key))
    assert isinstance(read.curve, ec.SECP384R1)
    public = certificates.public_pem(key.public_key())
    assert asymmetric.public_key_to_bytes(asymmetric.bytes_to_public_key(public)) == public
    assert certificates.parse_public_key(public) == key.public_key()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"nonsense",
        certificates.public_pem(ec.generate_private_key(ec.SECP256R1()).public_key()),
        certificates.public_pem(certificates.new_key().public_key()) + b"more",
        b"\n" + certificates.public_pem(certificates.new_key().public_key()),
    ],
)
def test_public_keys_of_another_kind_or_form_are_refused(pem):
    with pytest.raises(TrustError):
        certificates.parse_public_key(pem)


def test_fingerprint_is_that_of_openssl(authority):
    ca, _ = authority
    der = ssl.PEM_cert_to_DER_cert(certificates.certificate_pem(ca).decode())
    import hashlib

    assert certificates.fingerprint(ca) == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize(
    ("days_from_now", "sentence"),
    [(-2, "is not valid before"), (0, None), (900, "expired on")],
)
def test_validity_is_checked_and_said_in_a_sentence(authority, days_from_now, sentence):
    server, _ = certificates.make_server_certificate(*authority, ["localhost"])
    now = datetime.now(UTC) + timedelta(days=days_from_now)
    if sentence is None:
        certificates.check_validity(server, "The certificate", now=now)
        return
    with pytest.raises(TrustError, match=f"^The certificate {sentence}"):
        certificates.check_validity(server, "The certificate", now=now)


def test_certificate_of_another_authority_is_noticed(authority):
    stranger = certificates.make_authority("a coordinator")
    server, _ = certificates.make_server_certificate(*stranger, ["localhost"])
    with pytest.raises(TrustError, match="not issued by"):
        certificates.check_issued_by(server, authority[0], "It")
    certificates.check_issued_by(server, stranger[0], "It")


def test_what_is_no_key_is_said_to_be_none(tmp_path):
    path = tmp_path / "key"
    with pytest.raises(TrustError, match="cannot be read"):
        certificates.load_private_key(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(TrustError, match="does not hold a private key"):
        certificates.load_private_key(path)
    path.write_bytes(certificates.private_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(TrustError, match="not an EC P-384 key"):
        certificates.load_private_key(path)
    with pytest.raises(TrustError, match="does not hold a certificate"):
        certificates.load_certificate(path)
