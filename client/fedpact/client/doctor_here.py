"""The doctor's checks of this machine: keys, disk, database, policy, data, models, device."""

import shutil
import warnings
from pathlib import Path

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from fedpact.client import policy as policies
from fedpact.client.datasets import Dataset, Datasets, require_unchanged
from fedpact.client.doctor import Finding, Patient
from fedpact.client.home import MIGRATIONS, ClientHome
from fedpact.common import certificates, identity
from fedpact.common.database import revisions, storage_error
from fedpact.common.errors import DataError, TrustError
from fedpact.common.identity import Role

_OTHERS = 0o077
_GIB = 1 << 30
_LEAST_FREE = _GIB // 10
_VERSION_TABLE = "fedpact_client_version"
_DRIVER = Path("/proc/driver/nvidia/version")


def joined(patient: Patient) -> Finding:
    """Whether this site has joined a coordinator."""
    site = patient.settings
    ca = certificates.load_certificate(patient.home.ca)
    if certificates.fingerprint(ca) != site.ca_fingerprint:
        raise TrustError(
            f"{patient.home.ca} is not the CA that this site joined.",
            advice="Take ca.pem and site.toml from the same backup, or join anew.",
        )
    return Finding("ok", f"{site.institution} ({site.role}) has joined {site.coordinator}")


def keys(patient: Patient) -> Finding:
    """Whether the site's keys are there, belong together, and are nobody else's to read."""
    home = patient.home
    files = [home.signing_key]
    identity.load_signing_key(home.signing_key)
    if patient.settings.role is Role.DATA_HOLDER:
        files.append(home.private_key)
        _require_pair(home)
    if open_ := [path for path in (home.folder, *files) if path.stat().st_mode & _OTHERS]:
        return Finding(
            "wrong",
            f"others than the owner can read {' and '.join(str(path) for path in open_)}",
            f"chmod 700 {home.folder} && chmod 600 {' '.join(str(path) for path in files)}",
        )
    names = " and ".join(path.name for path in files)
    return Finding("ok", f"{names}: there, and for their owner alone")


def disk(patient: Patient) -> Finding:
    """Whether there is space in the folder and in the cache."""
    existing = [path for path in (patient.home.folder, patient.home.cache) if path.exists()]
    if not existing:
        return Finding("warn", f"there is no folder {patient.home.folder} yet")
    free = min(shutil.disk_usage(path).free for path in existing)
    found, advice = f"{free / _GIB:.1f} GiB are free", f"Make space in {patient.home.folder}."
    if free < _LEAST_FREE:
        return Finding("wrong", found, advice)
    return Finding("warn", found, advice) if free < _GIB else Finding("ok", found)


def database(patient: Patient) -> Finding:
    """Whether the database can be written, and is of this fedpact."""
    home = patient.home
    if not _has_file(home):
        return Finding("ok", "there is none yet; the first data set makes it")
    try:
        engine = create_engine(home.database_url)
        try:
            here, newest = revisions(engine, MIGRATIONS, _VERSION_TABLE)
            _require_writable(engine)
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        raise storage_error(error) from error
    if here != newest:
        return Finding(
            "warn",
            f"its tables are at {here or 'nothing'}, this fedpact's are at {newest}",
            "Any command that opens it brings it up to date. Was it written by a newer one?",
        )
    return Finding("ok", f"it can be written; its tables are at {here}")


def policy(patient: Patient) -> Finding:
    """Whether the site's rules can be read."""
    rules = policies.load(patient.home.policy)
    if not patient.home.policy.exists():
        return Finding("warn", "there is none: the defaults hold", "Write a policy.toml.")
    if not rules.require_dp:
        return Finding("warn", "it lets updates leave that are not private", "Read require_dp.")
    return Finding("ok", f"it is valid; a data set may spend {rules.most}")


def datasets(patient: Patient) -> Finding:
    """Whether every data set is still what was registered."""
    known = _known(patient.home)
    if not known:
        return Finding("warn", "there are none", "`fedpact client dataset add NAME FILE`")
    problems = []
    for dataset in known:
        try:
            require_unchanged(dataset)
        except DataError as error:
            problems.append(error)
    if problems:
        advice = " ".join(filter(None, (problem.advice for problem in problems)))
        raise DataError(
            " ".join(problem.message for problem in problems),
            advice=advice or "Put the file back, or add its data set anew.",
        )
    return Finding("ok", f"{', '.join(dataset.name for dataset in known)}: unchanged")


def models(patient: Patient) -> Finding:
    """Whether the base models are on this machine, and are the ones that are meant."""
    from fedpact.common import base_models

    if not patient.models:
        return Finding("ok", "none was named: --study or --model names one")
    found = []
    for reference in patient.models:
        folder = base_models.locate(reference)
        digest = base_models.file_digest(folder / base_models.WEIGHTS)
        said = "as named" if reference.sha256 else "no SHA-256 was named"
        found.append(f"{reference.base}: {digest[:12]} ({said})")
    return Finding("ok", "; ".join(found))


def device(_patient: Patient) -> Finding:
    """What trains: a GPU that works, or the CPU."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        if not _DRIVER.exists():
            return Finding("ok", "no GPU: the CPU trains")
        why = str(said[0].message).partition("\n")[0] if said else "PyTorch does not see it"
        return Finding(
            "warn",
            f"there is an NVIDIA driver, but the CPU trains: {why}",
            "Install the PyTorch that fits the driver; look at CUDA_VISIBLE_DEVICES.",
        )
    name = torch.cuda.get_device_name()
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        return Finding("wrong", f"{name} does not work: {why}", "Install a PyTorch that fits.")
    free, total = torch.cuda.mem_get_info()
    return Finding("ok", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")


def _require_pair(home: ClientHome) -> None:
    private = certificates.load_private_key(home.private_key)
    try:
        written = home.public_key.read_bytes()
    except OSError as error:
        raise TrustError(f"{home.public_key} cannot be read: {error.strerror}.") from error
    if written != certificates.public_pem(private.public_key()):
        raise TrustError(
            f"{home.public_key} is not the public key of {home.private_key}.",
            advice="Take both from the same backup, or join anew with a new token.",
        )


def _require_writable(engine: Engine) -> None:
    """Write, and take it back."""
    with engine.connect() as connection, connection.begin() as transaction:
        connection.exec_driver_sql(
            f"UPDATE {_VERSION_TABLE} SET version_num = version_num"  # noqa: S608 - our own name
        )
        transaction.rollback()


def _has_file(home: ClientHome) -> bool:
    """Whether there is a database: to open SQLite would make a file."""
    return bool(home.database) or (home.folder / "fedpact.db").exists()


def _known(home: ClientHome) -> list[Dataset]:
    if not _has_file(home):
        return []
    engine = create_engine(home.database_url)
    try:
        return Datasets(engine).list()
    finally:
        engine.dispose()
