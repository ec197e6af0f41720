from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from fedpact.common.certificates import check_issued_by, load_certificate
from fedpact.common.errors import TrustError
from fedpact.server import home as homes
from fedpact.server.home import ServerHome
from fedpact.server.renewal import Renewal, issue_for_superlink


@pytest.fixture
def home(tmp_path) -> ServerHome:
    return homes.init(tmp_path / "server", "fed.example.org")


def days_left(home: ServerHome) -> int:
    end = load_certificate(home.server_certificate).not_valid_after_utc
    return round((end - datetime.now(UTC)) / timedelta(days=1))


@pytest.mark.parametrize(("days", "renewed"), [(31, False), (29, True), (1, True), (-1, True)])
def test_a_certificate_is_renewed_thirty_days_before_its_end(home, days, renewed):
    homes.renew(home, "fed.example.org", days=days)
    Renewal(home, "fed.example.org").check()
    assert (days_left(home) != days) == renewed
    home.check_certificates() if renewed else None
    names = load_certificate(home.server_certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "fed.example.org" in names.value.get_values_for_type(x509.DNSName)


def test_without_the_cas_key_it_is_said_once_a_day(home, caplog):
    homes.renew(home, "fed.example.org", days=1)
    home.ca_key.unlink()
    renewal, now = Renewal(home, "fed.example.org"), datetime.now(UTC)
    for hours in (0, 1, 23, 25):
        renewal.check(now + timedelta(hours=hours))
    assert caplog.text.count("is not renewed") == 2
    assert days_left(home) == 1


def test_superlinks_own_certificate_lasts_as_long_as_the_ca(home):
    issue_for_superlink(home)
    ca, own = load_certificate(home.ca), load_certificate(home.superlink_certificate)
    check_issued_by(own, ca, "SuperLink's certificate")
    assert ca.not_valid_after_utc - own.not_valid_after_utc < timedelta(days=2)
    home.ca_key.unlink()
    issue_for_superlink(home)
    assert load_certificate(home.superlink_certificate) == own
    home.superlink_certificate.unlink()
    with pytest.raises(TrustError, match=r"ca\.key"):
        issue_for_superlink(home)
