"""What a coordinator's memory grows by while it aggregates the updates of 100 sites.

One round through the real round loop (`fedpact.server.rounds.Conductor`: admission, unpacking,
aggregation, the database and artifact folder of a run), with an exchange that makes each
update of 1.2 MB when it is asked for one. The figure is the growth of the largest resident
size from the first update on, counted in updates.
"""

import resource
import tempfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from _report import parser, report
from fedpact.common import wire
from fedpact.common.adapter import Manifest, Weights
from fedpact.common.database import open_database, sqlite_url
from fedpact.common.study import Study
from fedpact.server import runs
from fedpact.server.home import MIGRATIONS
from fedpact.server.round_needs import Terms
from fedpact.server.rounds import Conductor

VALUES = 300_000  # 1.2 MB of float32
TENSORS = 12


@dataclass
class Sites:
    """An `Exchange` of sites that answer one after another, each with an update of its own.

    Attributes:
        peaks: the largest resident size, in bytes, when each update was asked for.
    """

    study: Study
    manifest: Manifest
    waiting: list[str] = field(default_factory=list)
    request: wire.Packet = field(default_factory=lambda: wire.Packet(header=""))
    peaks: list[int] = field(default_factory=list)

    def present(self) -> AbstractSet[str]:
        """All of them, always."""
        return {institution.name for institution in self.study.institutions}

    def ask(self, packets: Mapping[str, wire.Packet]) -> None:
        """Remember whom to answer for."""
        self.waiting = sorted(packets)
        self.request = next(iter(packets.values()))

    def ask_again(self, packets: Mapping[str, wire.Packet]) -> None:
        """Nobody: none is ever lost."""
        raise AssertionError(packets.keys())

    def replies(self) -> Mapping[str, wire.Packet]:
        """One update."""
        self.peaks.append(peak())
        if not self.waiting:
            return {}
        name = self.waiting.pop()
        return {name: self._update(len(self.waiting))}

    def lost(self, pending: AbstractSet[str]) -> AbstractSet[str]:
        """Nobody."""
        del pending
        return set()

    def _update(self, seed: int) -> wire.Packet:
        rng = np.random.default_rng(seed)
        change = Weights(self.manifest, rng.standard_normal(VALUES, dtype=np.float32))
        request, _ = wire.unpack(self.request)
        header = wire.UpdateHeader(
            run=request.run,
            round=request.round,
            study_digest=request.study_digest,
            change=wire.ArrayInfo.of(change),
            epsilon=1.0,
            steps=1,
        )
        return wire.pack(header, change)


def peak() -> int:
    """The largest resident size of this process so far, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_study(sites: int, rounds: int) -> Study:
    return Study.model_validate(
        {
            "study": {"name": "coordinator-memory"},
            "task": {"labels": ["no", "yes"]},
            "model": {"base": "none"},
            "training": {"rounds": rounds, "batch_size": 16},
            "aggregation": {"method": "fedavg"},
            "institutions": [
                {"name": f"site-{n:03}", "sector": "academia", "records": 1000 + n}
                for n in range(sites)
            ],
        }
    )


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--updates", type=int, default=100)
    args = command_line.parse_args()
    study = make_study(args.updates, 1)
    each = VALUES // TENSORS
    manifest = Manifest(
        tuple(f"layer.{n}.lora_B.weight" for n in range(TENSORS)), ((each,),) * TENSORS
    )
    adapter = Weights(manifest, np.zeros(VALUES, dtype=np.float32))
    sites = Sites(study, manifest)
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(sqlite_url(Path(folder, "fedpact.db")), MIGRATIONS)
        run = runs.create(engine, study, Path(folder))
        record = runs.RunRecord(engine, run, Path(folder))
        Conductor(study, run, sites, record, partial(Terms.all_of, study)).conduct(adapter)
        counted = sum(
            a.state == "updated" for a in runs.view(engine, run).rounds[0].answers.values()
        )
        engine.dispose()
    assert counted == args.updates
    size = 4 * VALUES
    after_first, after_all = sites.peaks[1], peak()
    report(
        title=f"Peak memory of aggregating {args.updates} updates, growth in updates",
        figure=(after_all - after_first) / size,
        target="< 5",
        parts={
            "update_bytes": size,
            "updates": counted,
            "peak_mib_before_the_first_update": sites.peaks[0] / 2**20,
            "peak_mib_after_the_first_update": after_first / 2**20,
            "peak_mib_after_half_of_them": sites.peaks[args.updates // 2] / 2**20,
            "peak_mib_at_the_end": after_all / 2**20,
            "growth_with_the_first_in_updates": (after_all - sites.peaks[0]) / size,
        },
        form=args.format,
    )


if __name__ == "__main__":
    main()
