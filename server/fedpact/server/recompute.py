"""Aggregating the rounds of a transcript again, from the updates that were kept.

What an `aggregated` entry names must come out bit for bit: the same updates, of the same
digests, added in the same order with the same weights to the same adapter.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedpact.common.adapter import Weights
from fedpact.common.errors import AuditError, WireError
from fedpact.common.study import Study
from fedpact.common.transcript import Entry
from fedpact.server import aggregation


def recompute(entries: Iterable[Entry], artifacts: Path) -> int:
    """Aggregate every round again.

    Args:
        entries: of a coordinator's transcript that was verified.
        artifacts: the folder with the adapters and updates, each named by its digest.

    Returns:
        how many rounds came out as they are written.

    Raises:
        AuditError: the first entry that does not come out, or whose updates are not there.
        StudyError: a run's study cannot be read.
    """
    studies: dict[str, Study] = {}
    rounds = 0
    for entry in entries:
        body: Any = entry.body
        if entry.kind == "run-started":
            studies[body["run"]] = Study.from_canonical(body["study"])
        elif entry.kind == "aggregated":
            _again(entry, studies, artifacts)
            rounds += 1
    return rounds


def _again(entry: Entry, studies: dict[str, Study], artifacts: Path) -> None:
    body: Any = entry.body
    what = f"Entry {entry.number} of {entry.author} (run {body['run']}, round {body['round']})"
    if (study := studies.get(body["run"])) is None:
        raise AuditError(f"{what} is of a run that was never started.")
    before = _kept(body["before"], artifacts, what)
    trained = before.manifest.select(aggregation.trained_names(study, before.manifest.names))
    total = aggregation.for_study(study, trained)
    for update in body["updates"]:
        total.add(_kept(update["digest"], artifacts, what), update["weight"])
    digest = before.plus(total.result()).digest
    if digest != body["adapter"]:
        raise AuditError(
            f"{what} does not fit: its updates make the adapter {digest[:12]}, it says "
            f"{body['adapter'][:12]}.",
            advice="The adapter is not the aggregate of what the sites sent.",
        )


def _kept(digest: str, artifacts: Path, what: str) -> Weights:
    path = artifacts / f"{digest}.safetensors"
    try:
        weights = Weights.load(path)
    except (OSError, WireError) as error:
        raise AuditError(f"{what} cannot be checked: {path} cannot be read.") from error
    if weights.digest != digest:
        raise AuditError(f"{what} cannot be checked: {path} does not hold what its name says.")
    return weights
