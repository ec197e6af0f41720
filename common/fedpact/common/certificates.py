"""Keys and certificates: the coordinator's own CA, and the keys that sites sign with.

A coordinator has a certificate authority of its own: one long-lived CA certificate, whose
fingerprint travels in every invitation, and one server certificate under it that can be
issued again without telling anyone. Sites trust that CA and no other. Node keys are EC P-384
in the form that Flower's node authentication reads (PKCS 8 and SubjectPublicKeyInfo, PEM).

Private keys are written by `fedpact.common.private_files`: readable by their owner alone from the
first byte on disk.
"""

import hashlib
import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpact.common.errors import TrustError

CA_DAYS = 3650
SERVER_DAYS = 825
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
# Machines whose clocks are a little behind must not take a new certificate for a future one.
_CLOCK_TOLERANCE = timedelta(hours=1)

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def new_key() -> PrivateKey:
    """A new EC P-384 private key."""
    return ec.generate_private_key(ec.SECP384R1())


def private_pem(key: PrivateKey) -> bytes:
    """A private key as PKCS 8 PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: PublicKey) -> bytes:
    """A public key as SubjectPublicKeyInfo PEM: the form that Flower compares byte by byte."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_private_key(path: Path) -> PrivateKey:
    """Read a private key file.

    Raises:
        TrustError: there is none, it cannot be read, or it is not an EC P-384 key.
    """
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise TrustError(f"{path} does not hold a private key: {error}.") from error
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise TrustError(f"The key in {path} is not an EC P-384 key.")
    return key


def parse_public_key(pem: bytes) -> PublicKey:
    """Read a public key that another party sent.

    Raises:
        TrustError: it is not the PEM of an EC P-384 public key, exactly as Flower writes it.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise TrustError("The public key is damaged.") from error
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise TrustError("The public key is not an EC P-384 key.")
    if public_pem(key) != pem:
        raise TrustError("The public key is not in its canonical form.")
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file.

    Raises:
        TrustError: there is none, or it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise TrustError(f"{path} does not hold a certificate: {error}.") from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's DER, in hexadecimal."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_authority(name: str, *, days: int = CA_DAYS) -> tuple[x509.Certificate, PrivateKey]:
    """A certificate authority: its certificate, signed by itself, and its key."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(subject, subject, key.public_key(), key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    return certificate, key


def make_server_certificate(
    authority: x509.Certificate,
    authority_key: PrivateKey,
    hosts: Iterable[str],
    *,
    days: int = SERVER_DAYS,
) -> tuple[x509.Certificate, PrivateKey]:
    """A certificate for a server, signed by the authority, and its key.

    Args:
        authority: the CA's certificate.
        authority_key: the CA's key.
        hosts: names and addresses that clients dial; this machine's own names are added.
        days: how long it is valid; negative for one that has expired already.
    """
    key = new_key()
    names = list(dict.fromkeys((*hosts, *_LOCAL_NAMES)))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), authority_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    return certificate, key


def check_validity(
    certificate: x509.Certificate, what: str, *, now: datetime | None = None, advice: str = ""
) -> None:
    """Check that a certificate is valid at this moment.

    Args:
        certificate: the certificate.
        what: how the error calls it, for instance "The coordinator's certificate".
        now: the moment, in UTC; the present if not given.
        advice: what to do if it has expired.

    Raises:
        TrustError: it has expired, or is not valid yet.
    """
    now = now or datetime.now(UTC)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise TrustError(f"{what} expired on {end:%Y-%m-%d %H:%M} UTC.", advice=advice)
    if now < start:
        raise TrustError(
            f"{what} is not valid before {start:%Y-%m-%d %H:%M} UTC.",
            advice="Check this machine's clock.",
        )


def check_issued_by(
    certificate: x509.Certificate, authority: x509.Certificate, what: str
) -> None:
    """Check that the authority signed a certificate.

    Raises:
        TrustError: it did not.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise TrustError(f"{what} was not issued by the coordinator's CA.") from error


def check_pair(certificate: Path, key: Path, *, advice: str = "") -> None:
    """Check that a private key's file is that of a certificate's file.

    Raises:
        TrustError: it is not, or one of them cannot be read.
    """
    if load_certificate(certificate).public_key() != load_private_key(key).public_key():
        raise TrustError(f"{key} is not the key of {certificate}.", advice=advice)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrustError(f"{path} cannot be read: {error.strerror}.") from error


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: PublicKey,
    issuer_key: PublicKey,
    days: int,
) -> x509.CertificateBuilder:
    """What both kinds of certificate have in common; OpenSSL's strict mode wants the key ids."""
    end = datetime.now(UTC) + timedelta(days=days)
    start = min(datetime.now(UTC), end) - _CLOCK_TOLERANCE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )
