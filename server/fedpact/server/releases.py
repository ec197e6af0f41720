"""Releases: an adapter with its card, signed by the coordinator, in a folder that can be given away.

`release.json` names the study and the run, has the SHA-256 of every other file, the coordinator's
public key and its signature over all of that. Whoever has the key verifies the folder without
anything else.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from fedpact.common import identity
from fedpact.common.adapter import ADAPTER
from fedpact.common.base_models import file_digest
from fedpact.common.database import disk_errors
from fedpact.common.errors import RunError, TrustError, UsageError, WireError
from fedpact.common.identity import SigningKey, VerifyKey
from fedpact.common.study import Study
from fedpact.common.transcript import canonical, parse_canonical
from fedpact.common.transcript_store import write
from fedpact.common.verdict import Verdict
from fedpact.server import runs
from fedpact.server.card import card
from fedpact.server.tables import Institution, transaction

DOCUMENT, CARD = "release.json", "README.md"
_ADAPTER = ("adapter_config.json", ADAPTER)


@dataclass(frozen=True)
class Release:
    """What `release.json` says.

    Attributes:
        files: SHA-256 of each file beside it.
        key: the coordinator's Ed25519 public key, hexadecimal.
    """

    run: str
    study_digest: str
    files: dict[str, str]
    key: str


def build(
    engine: Engine, run: str, key: SigningKey, folder: Path, verdicts: Sequence[str] = ()
) -> Release:
    """Make a release of a run that has ended.

    Args:
        engine: the coordinator's database.
        run: the run's identifier.
        key: the coordinator's.
        folder: where; it must not exist.
        verdicts: the files of audits' verdicts, as text.

    Raises:
        RunError: there is no such run, or it has no adapter.
        UsageError: the folder exists.
        TrustError: a verdict is not of an institution of the study, not signed with its key, of
            another study, or not meant to be released.
        WireError: a file does not hold a verdict.
        StorageError: the disk fails.
    """
    view = runs.view(engine, run)
    if not view.adapter:
        raise RunError(
            f"The run {run} has no adapter.", advice="Only a run that has ended has one."
        )
    if folder.exists():
        raise UsageError(f"{folder} exists already.", advice="Take another folder.")
    found = [_verified(engine, view.study, text) for text in verdicts]
    with disk_errors():
        folder.mkdir(parents=True)
        for name in _ADAPTER:
            shutil.copyfile(Path(view.adapter) / name, folder / name)
        (folder / CARD).write_text(card(view, found, in_full=True), encoding="utf-8")
        files = {name: file_digest(folder / name) for name in (*_ADAPTER, CARD)}
    release = Release(run, view.study.digest, files, identity.public_bytes(key).hex())
    content = canonical(vars(release))
    document = {
        **vars(release),
        "signature": identity.sign(key, "release", content.encode()).hex(),
    }
    with disk_errors():
        (folder / DOCUMENT).write_text(canonical(document) + "\n", encoding="utf-8")
    with transaction(engine) as session:
        write(session, "released", vars(release))
    return release


def verify(folder: Path, key: VerifyKey | None = None) -> Release:
    """Check a release's folder: every file is what was signed, and nothing is missing.

    Args:
        folder: the release.
        key: the coordinator's; without it the key in the folder is taken, and it is known only
            that whoever signed it made all of it.

    Raises:
        WireError: it holds no release.
        TrustError: it is not signed with the key, or a file is another.
    """
    try:
        document: dict[str, Any] = parse_canonical(
            (folder / DOCUMENT).read_text(encoding="utf-8").removesuffix("\n")
        )
        signature = bytes.fromhex(document.pop("signature"))
        release = Release(**document)
        stated = identity.verify_key(bytes.fromhex(release.key))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"{folder} does not hold a release.") from error
    if key is not None and identity.public_bytes(key) != identity.public_bytes(stated):
        raise TrustError("The release is signed with another key than this coordinator's.")
    if not identity.is_signed(stated, "release", canonical(document).encode(), signature):
        raise TrustError("The signature of the release is not valid.")
    if set(release.files) != {*_ADAPTER, CARD}:
        raise TrustError("The release does not name the files that it must have.")
    for name, sha256 in release.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != sha256:
            raise TrustError(f"{name} is not the file that was signed.")
    return release


def _verified(engine: Engine, study: Study, text: str) -> Verdict:
    name = Verdict.author(text)
    study.institution(name)
    with transaction(engine) as session:
        key = session.scalar(select(Institution.signing_key).where(Institution.name == name))
    if key is None:
        raise TrustError(f"{name} has not joined.")
    verdict = Verdict.read(text, identity.verify_key(key))
    if verdict.study_digest != study.digest:
        raise TrustError(f"The verdict of {name} is of another study.")
    if not verdict.releasable or verdict.membership_auc is not None:
        raise TrustError(
            f"{name} has not released its verdict.",
            advice="Ask for one that was saved with `fedpact client audit --save FILE --release`.",
        )
    return verdict
