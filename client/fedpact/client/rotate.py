"""Changing an institution's keys without joining again.

(1) The new keys are made beside the old ones, and kept. (2) The coordinator is told, in a call
that the old signing key signs and that carries the new one's proof; from its answer on, the
old keys are refused. (3) The transcript goes on with the new signing key. (4) The new keys take
the old ones' place. (5) What lay beside is removed.

It may be repeated after it broke off anywhere: the keys that lie beside are used again, and
the coordinator, which may have been told already, takes the same keys from either signature.
"""

import tomllib

import tomli_w

from fedpact.client.home import ClientHome
from fedpact.client.join import JoinedSite, SiteSettings, load_site
from fedpact.client.service import Service
from fedpact.client.tables import TranscriptRow, exclusive
from fedpact.common import certificates, identity, possession
from fedpact.common.errors import WireError
from fedpact.common.identity import Role, SigningKey
from fedpact.common.private_files import write_private
from fedpact.common.statuses import NotAcceptedError
from fedpact.common.v1 import federation_pb2 as pb


def rotate(home: ClientHome) -> JoinedSite:
    """Give an institution new keys: its node's and the one that it signs with.

    Returns:
        the institution as it is from now on.

    Raises:
        TrustError: it has not joined, or the coordinator accepts neither the old key nor the
            new one.
        AddressError: the coordinator or its SuperLink is away; nothing has changed, or a
            repetition finishes it.
        StorageError: the folder cannot be written.
    """
    site = load_site(home)
    node, signing = _next_keys(home, site.role)
    try:
        node_id = _tell(site, site.signing_key, node, signing)
    except NotAcceptedError:
        # An earlier attempt may have come through, and only its answer was lost.
        node_id = _tell(site, signing, node, signing)
    _write_down(home, signing)
    _take_place(home, node_id)
    return load_site(home)


def _next_keys(home: ClientHome, role: Role) -> tuple[bytes, SigningKey]:
    """Make the new keys, unless an earlier attempt did; the node's public one, PEM."""
    node = b""
    if role is Role.DATA_HOLDER:
        if not home.next_private_key.exists():
            key = certificates.new_key()
            write_private(home.next_private_key, certificates.private_pem(key))
        key = certificates.load_private_key(home.next_private_key)
        node = certificates.public_pem(key.public_key())
    if not home.next_signing_key.exists():
        write_private(home.next_signing_key, identity.private_pem(identity.new_signing_key()))
    return node, identity.load_signing_key(home.next_signing_key)


def _tell(site: JoinedSite, signs: SigningKey, node: bytes, signing: SigningKey) -> str:
    """Tell the coordinator; the node's number from now on."""
    request = pb.RotateRequest(
        node_key=node,
        signing_key=identity.public_bytes(signing),
        proof=possession.prove(signing, node, identity.public_bytes(signs)),
    )
    with Service(site, key=signs) as service:
        node_id = str(service.federation.Rotate(request).node_id)
    if node_id.isdecimal() != bool(node):
        raise WireError("The answer to changing keys is not a coordinator's: its node_id.")
    return node_id


def _write_down(home: ClientHome, signing: SigningKey) -> None:
    """Have the transcript go on with the new key, unless an earlier attempt did."""
    engine, store = home.open_database(), home.transcript()
    key = identity.public_bytes(signing)
    with exclusive(engine, TranscriptRow.__tablename__) as session:
        if store is not None and store.goes_on_with(session) != key:
            store.append(session, "rotated", {"key": key.hex()})
    engine.dispose()


def _take_place(home: ClientHome, node_id: str) -> None:
    """Put the new keys in the old ones' place; what lies beside goes last."""
    if node_id:
        key = certificates.load_private_key(home.next_private_key)
        write_private(home.private_key, certificates.private_pem(key))
        write_private(home.public_key, certificates.public_pem(key.public_key()))
    settings = SiteSettings.model_validate(tomllib.loads(home.site.read_text(encoding="utf-8")))
    changed = settings.model_copy(update={"node_id": node_id})
    write_private(home.site, tomli_w.dumps(changed.model_dump()).encode())
    write_private(home.signing_key, home.next_signing_key.read_bytes())
    home.next_signing_key.unlink()
    home.next_private_key.unlink(missing_ok=True)
