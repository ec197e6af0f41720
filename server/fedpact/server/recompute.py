"""Aggregating the rounds of a transcript again, from the updates that were kept.

What an `aggregated` entry names must come out bit for bit: the same updates, of the same
digests, added in the same order with the same weights to the same adapter, and the same state of
the server optimiser where there is one: the one that the run's last such entry names.

The coordinator's own noise is drawn once and kept nowhere: rounds with it are counted, not checked.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpact.common.adapter import Weights
from fedpact.common.errors import AuditError, StorageError
from fedpact.common.randomness import SecureRandom
from fedpact.common.study import Study
from fedpact.common.transcript import Entry
from fedpact.server import aggregation, artifacts
from fedpact.server.aggregation import Standing
from fedpact.server.aggregation.clipped import Clipping

_ADVICE = {
    False: "The adapter is not the aggregate of what the sites sent.",
    True: "The adapter is not the aggregate of what the sites sent, or NumPy's BLAS or LAPACK here "
    "is another than the coordinator's: check where the round was run.",
}


@dataclass(frozen=True)
class Recomputed:
    """What became of a transcript's rounds.

    Attributes:
        rounds: came out as they are written.
        noised: have the coordinator's own noise, and were not checked.
    """

    rounds: int
    noised: int


class _Run:
    """A run as far as its entries were read; `state` is the digest of its optimiser's."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.state: str | None = None
        clips = study.aggregation.clip_norm is not None
        self.clipping = Clipping(study, SecureRandom()) if clips else None


def recompute(entries: Iterable[Entry], folder: Path) -> Recomputed:
    """Aggregate every round again that has no noise of the coordinator's own.

    Args:
        entries: of a coordinator's transcript that was verified.
        folder: the one with the adapters and updates, each named by its digest.

    Raises:
        AuditError: the first entry that does not come out, or whose updates are not there.
        StudyError: a run's study cannot be read.
    """
    runs: dict[str, _Run] = {}
    rounds = noised = 0
    for entry in entries:
        body: Any = entry.body
        if entry.kind == "run-started":
            runs[body["run"]] = _Run(Study.from_canonical(body["study"]))
        elif entry.kind == "round-started" and "sent" in body:
            _cut_again(body, runs.get(body["run"]), folder, _what(entry))
        elif entry.kind == "aggregated":
            what = _what(entry)
            if (run := runs.get(body["run"])) is None:
                raise AuditError(f"{what} is of a run that was never started.")
            if run.study.aggregation.noise_multiplier:
                noised += 1
                continue
            _again(body, run, folder, what)
            rounds += 1
    return Recomputed(rounds, noised)


def _what(entry: Entry) -> str:
    body: Any = entry.body
    return f"Entry {entry.number} of {entry.author} (run {body['run']}, round {body['round']})"


def _cut_again(body: Any, run: _Run | None, folder: Path, what: str) -> None:
    """Each site of a lower rank was sent the first components of the round's adapter."""
    if run is None:
        raise AuditError(f"{what} is of a run that was never started.")
    adapter = _kept(body["adapter"], folder, what)
    for name, weights in aggregation.sent(run.study, adapter, body["sent"]).items():
        if weights.digest != body["sent"][name]:
            raise AuditError(
                f"{what} does not fit: {name} was sent another adapter than the round's, cut to its "
                "rank."
            )


def _again(body: Any, run: _Run, folder: Path, what: str) -> None:
    adapter = _kept(body["before"], folder, what)
    before = Standing(adapter, _kept(run.state, folder, what) if run.state else None)
    total = aggregation.Round(run.study, before, body["round"], run.clipping)
    for update in body["updates"]:
        total.add(_kept(update["digest"], folder, what), update["weight"])
    after = total.result()
    digest = after.adapter.digest
    if digest != body["adapter"]:
        raise AuditError(
            f"{what} does not fit: its updates make the adapter {digest[:12]}, it says "
            f"{body['adapter'][:12]}.",
            advice=_ADVICE[_is_of_this_build(run.study)],
        )
    if after.state is None:
        return
    run.state = after.state.digest
    if after.state.digest != body.get("state"):
        raise AuditError(
            f"{what} does not fit: its updates make another state of the server optimiser.",
            advice="The next round's adapter is not made of what the sites sent.",
        )


def _is_of_this_build(study: Study) -> bool:
    """Whether another BLAS or LAPACK may round the last bit otherwise."""
    asked = study.aggregation
    return asked.method == "fedsvd" or asked.keeps_factors or asked.clip_norm is not None


def _kept(digest: str, folder: Path, what: str) -> Weights:
    try:
        return artifacts.read(folder, digest)
    except StorageError as error:
        raise AuditError(f"{what} cannot be checked: {error}") from error
