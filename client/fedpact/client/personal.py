"""What is a site's own in a run: tensors that are never sent, or a second adapter.

Two kinds, and the difference is privacy. Where sites keep tensors (`private-head`,
`fedsa-lora`), the next shared update is computed through them. So under DP-SGD they are
trained by the very steps that train what is shared, clipped and noised together: what is kept
is then an output of the mechanism that the ledger counts, and later rounds may depend on it.
The second adapter of `ditto`, `fine-tune` and `interpolate` is trained without noise. Nothing
shared may ever depend on it: not a gradient, not a metric, not even whether a round is answered.

What is kept of a round is on disk before its update may leave, as a reservation is before
training. A round starts from what the newest round *before* it left: trained anew after a
crash, it starts from where it started, and what is sent belongs to what is kept.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from fedpact.client.workbench import Workbench
from fedpact.common.adapter import Weights
from fedpact.common.database import disk_errors
from fedpact.common.errors import DataError, RunError, StorageError, TrainingError, WireError
from fedpact.common.private_files import write_private
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study

log = logging.getLogger(__name__)

_STUDY = "study.json"
_SHARED, _PERSONAL = "shared/", "personal/"


@dataclass(frozen=True, eq=False)
class Kept:
    """What a site keeps of a round.

    Attributes:
        number: of the round, from 1.
        shared: the adapter as it was received for it, without what sites keep.
        personal: after it, the tensors that the site keeps, or its whole second adapter;
            None where the study has nothing personal, or no second adapter could be trained.
    """

    number: int
    shared: Weights
    personal: Weights | None


class RunFolder:
    """What a site keeps of its runs: of each, the newest round and the one before.

    Args:
        folder: with one folder for each run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, run: str, number: int) -> Kept | None:
        """What the newest round before this one left; None if there was none.

        Raises:
            StorageError: it cannot be read.
        """
        earlier = [n for n in self._rounds(run) if n < number]
        return self._read(run, earlier[-1]) if earlier else None

    def newest(self, run: str) -> tuple[Study, Kept]:
        """A run's study, and what its newest round left.

        Raises:
            RunError: this site has answered no round of such a run.
            StorageError: it cannot be read.
        """
        if not (rounds := self._rounds(run)):
            raise RunError(
                f"This site has answered no round of a run {run}.",
                advice="`fedpact client departures` lists the runs that it has answered.",
            )
        with disk_errors():
            study = Study.from_canonical((self._of(run) / _STUDY).read_text(encoding="utf-8"))
        return study, self._read(run, rounds[-1])

    def keep(self, run: str, study: Study, kept: Kept) -> None:
        """Write a round down, durably; of the earlier ones only the newest stays.

        Raises:
            StorageError: it cannot be written.
        """
        if not (self._of(run) / _STUDY).exists():
            write_private(self._of(run) / _STUDY, study.canonical().encode())
        tensors = {_SHARED + name: value for name, value in kept.shared.tensors().items()}
        if kept.personal is not None:
            own = kept.personal.tensors()
            tensors |= {_PERSONAL + name: value for name, value in own.items()}
        content = Weights.from_tensors(tensors).to_safetensors()
        write_private(self._path(run, kept.number), content)
        earlier = [n for n in self._rounds(run) if n < kept.number]
        with disk_errors():
            for old in earlier[:-1]:
                self._path(run, old).unlink(missing_ok=True)

    def _read(self, run: str, number: int) -> Kept:
        path = self._path(run, number)
        try:
            with disk_errors():
                tensors = Weights.load(path).tensors()
        except WireError as error:
            raise StorageError(f"{path} is damaged: {error}") from error
        parts = {
            prefix: {
                n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
            }
            for prefix in (_SHARED, _PERSONAL)
        }
        own = parts[_PERSONAL]
        shared = Weights.from_tensors(parts[_SHARED])
        return Kept(number, shared, Weights.from_tensors(own) if own else None)

    def _rounds(self, run: str) -> list[int]:
        files = self._of(run).glob("*.safetensors")
        return sorted(int(path.stem) for path in files)

    def _path(self, run: str, number: int) -> Path:
        return self._of(run) / f"{number}.safetensors"

    def _of(self, run: str) -> Path:
        # A coordinator may call a run `..`.
        return self._folder / f"run-{run}"


def whole(study: Study, first: Weights, shared: Weights, kept: Kept | None) -> Weights:
    """The whole adapter that a site works with: what is shared, and the tensors it keeps.

    Args:
        study: says which are kept.
        first: the adapter's first values, for what has not been trained yet.
        shared: as it was received.
        kept: of an earlier round.
    """
    if not study.personalisation.keeps_tensors:
        return shared
    adapter = first.overlaid(shared)
    if kept is not None and kept.personal is not None:
        adapter = adapter.overlaid(kept.personal)
    return adapter


def after_round(
    study: Study,
    institution: str,
    workbench: Workbench,
    start: Weights,
    kept: Kept | None,
    change: Weights,
    records: EncodedRecords,
) -> Weights | None:
    """What is personal after a round.

    Args:
        study: whose round it is; the workbench was made ready for it.
        institution: this one.
        workbench: the resident model.
        start: the whole adapter from which the round was trained.
        kept: of an earlier round.
        change: what the round changed, in all tensors that it trained.
        records: that it trained on.
    """
    personal = study.personalisation
    if personal.keeps_tensors:
        shared = set(study.shared(start.manifest.names))
        trained = start.plus(change)
        return trained.select(n for n in start.manifest.names if n not in shared)
    if personal.ditto_lambda is None:
        return None
    before = kept.personal if kept is not None else None
    try:
        own = before or start
        change = workbench.train_apart(
            study,
            institution,
            own,
            records,
            steps=study.training.local_steps,
            training=personal.training(study.training),
            anchor=start,
            pull=personal.ditto_lambda,
        )
        return own.plus(change)
    except (DataError, TrainingError) as error:
        # A refusal would tell the coordinator of what was trained without noise.
        log.warning("the personal adapter stays as it was: %s", error)
        return before
