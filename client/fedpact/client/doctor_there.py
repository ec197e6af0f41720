"""The doctor's checks of the way to the coordinator, and of the coordinator at its end."""

import socket
from datetime import datetime, timedelta
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from fedpact.client.doctor import Finding, Patient
from fedpact.common import certificates as certs
from fedpact.common.errors import AddressError, TrustError
from fedpact.common.identity import public_bytes
from fedpact.common.invitation import split_address
from fedpact.common.signed_calls import TOLERANCE_SECONDS
from fedpact.common.version import fedpact_version

_SECONDS = 5.0
_CLOCK_WRONG = timedelta(seconds=TOLERANCE_SECONDS)
# Flower takes a signature for one from the future when it is five seconds ahead.
_CLOCK_WARN = timedelta(seconds=3)
_SOON = timedelta(days=30)


def proxy(patient: Patient) -> Finding:
    """Whether a proxy is in the way, and can be reached."""
    there = _proxy_for(patient.settings.coordinator)
    if there is None:
        return Finding("ok", "none is used")
    parts = urlsplit(there if "://" in there else f"http://{there}")
    try:
        host, port = parts.hostname or "", parts.port or 80
        socket.create_connection((host, port), _SECONDS).close()
    except (OSError, ValueError) as error:
        raise AddressError(
            f"The proxy {parts.hostname}:{parts.port or 80} cannot be reached: {error}.",
            advice="Mend HTTPS_PROXY, or name the coordinator's host in NO_PROXY.",
        ) from error
    return Finding("ok", f"{host}:{port} is used, and can be reached")


def name(patient: Patient) -> Finding:
    """Whether the coordinator's name leads to an address."""
    host, port = split_address(patient.settings.coordinator)
    if _proxy_for(patient.settings.coordinator):
        return Finding("ok", f"the proxy looks {host} up")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressError(
            f"The name {host} leads to no address: {error}.",
            advice="Check this machine's DNS; ask the coordinator whether its name has changed.",
        ) from error
    return Finding("ok", f"{host} is {found[0][4][0]}")


def connection(patient: Patient) -> Finding:
    """Whether somebody answers there, under TLS."""
    shown = patient.shown
    return Finding(
        "ok", f"{patient.settings.coordinator} answers, with {len(shown.chain)} certificates"
    )


def identity(patient: Patient) -> Finding:
    """Whether it is the coordinator that this site joined, by its CA's fingerprint."""
    ours = certs.load_certificate(patient.home.ca)
    ca = next(
        (c for c in patient.shown.chain if certs.fingerprint(c) == certs.fingerprint(ours)),
        None,
    )
    if ca is None:
        raise TrustError(
            f"{patient.settings.coordinator} is not the coordinator that this site joined: its CA has "
            "another fingerprint.",
            advice="Someone may be in between (a proxy that inspects TLS?), or the coordinator "
            "was set up anew: then join with a new token.",
        )
    certs.check_issued_by(patient.shown.chain[0], ca, "The server's certificate")
    return Finding("ok", f"its CA is the one that was joined, {certs.fingerprint(ca)[:12]}")


def certificates(patient: Patient) -> Finding:
    """How long the server's and the CA's certificates are valid."""
    server, ca = patient.shown.chain[0], certs.load_certificate(patient.home.ca)
    advice = "The coordinator must renew it: `fedpact server init --renew`."
    certs.check_validity(server, "The server's certificate", now=patient.now, advice=advice)
    certs.check_validity(ca, "The coordinator's CA certificate", now=patient.now)
    ends = {"server": server.not_valid_after_utc, "CA": ca.not_valid_after_utc}
    found = ", ".join(f"{what} {_days(end, patient.now)} days" for what, end in ends.items())
    if min(ends.values()) - patient.now < _SOON:
        return Finding("warn", f"left: {found}", advice)
    return Finding("ok", f"left: {found}")


def clock(patient: Patient) -> Finding:
    """Whether this machine's clock is the coordinator's: signatures carry the time."""
    theirs = patient.shown.clock
    if theirs is None:
        return Finding("warn", "the coordinator does not say its time")
    ahead = patient.now - theirs
    seconds = ahead.total_seconds()
    found = f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the coordinator's"
    advice = "Have both clocks set by NTP."
    if abs(ahead) > _CLOCK_WRONG:
        return Finding(
            "wrong", f"this machine's clock is {found}: its calls are refused", advice
        )
    if abs(ahead) > _CLOCK_WARN:
        return Finding("warn", f"this machine's clock is {found}", advice)
    return Finding("ok", "within seconds of the coordinator's")


def control_plane(patient: Patient) -> Finding:
    """Whether the control plane takes this institution's signed calls, and is who it was."""
    status, site = patient.status, patient.site
    if status.coordinator_key != public_bytes(site.coordinator_key):
        raise TrustError(
            "The coordinator signs with another key than when this site joined.",
            advice="Ask the coordinator why; join anew only when you know.",
        )
    return Finding("ok", f"it knows this site as {status.institution} ({status.role})")


def versions(patient: Patient) -> Finding:
    """Whether both sides run what goes together."""
    from fedpact.client.node import FLOWER_VERSION

    here, there = fedpact_version(), patient.status.version
    flower = patient.status.flower_version
    found = f"fedpact {here} here, {there} there; Flower {FLOWER_VERSION} here, {flower} there"
    if _minor(FLOWER_VERSION) != _minor(flower):
        return Finding("wrong", found, "Install the Flower that the coordinator has.")
    if here != there:
        return Finding("warn", found, "Update the older of the two.")
    return Finding("ok", found)


def superlink(patient: Patient) -> Finding:
    """Whether SuperLink, behind the gateway, takes calls with this site's key."""
    from fedpact.client import node

    site = patient.site
    if site.keys is None:
        return Finding("ok", f"as {site.role}, this institution runs no site")
    node.knock(node.Coordinator(site.address, site.ca, site.keys, site.node_id))
    return Finding("ok", "it answers, and accepts this site's key")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _proxy_for(address: str) -> str | None:
    host, _ = split_address(address)
    return None if proxy_bypass(host) else getproxies().get("https")


def _days(end: datetime, now: datetime) -> int:
    return (end - now).days
