"""Whether the audit tells sound DP-SGD from DP-SGD with a fault: caught bugs, false alarms.

MiniLM with A frozen, r = 8. Each planted bug is in one step with all records and a claim of
ε = 2, where 16,000 canaries are enough for half the noise. Sound runs take six steps with a
fifth of the records in each, and a claim of ε = 1.
"""

import time

import numpy as np

import _minilm
from _planted import BUGS, planted
from _report import Value, parser, report
from fedpact.client.audit import Audit, audit
from fedpact.client.workbench import Workbench
from fedpact.common.study import Study

SITE = "Clinic"
SOUND_RUNS = 20


def study(records: int, batch: int, rounds: int, steps: int, **privacy: float) -> Study:
    """MiniLM at one site with DP-SGD."""
    document = _minilm.study().model_dump()
    document["training"] |= {"rounds": rounds, "local_steps": steps, "batch_size": batch}
    document["privacy"] |= {"mechanism": "dp-sgd", **privacy}
    document["institutions"] = [{"name": SITE, "sector": "academia", "records": records}]
    return Study.model_validate(document)


def attacked(what: Study, workbench: Workbench, seed: int, *, m: int, r: int) -> Audit:
    rng = np.random.default_rng(seed)
    records = _minilm.records(rng.integers(4, 13, what.institutions[0].records))
    return audit(what, SITE, records, workbench, canaries=m, guesses=r, rng=rng)


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--sound-runs", type=int, default=SOUND_RUNS)
    args = command_line.parse_args()
    whole = study(40, 40, 1, 1, target_epsilon=2.0, target_delta=3e-5)
    sampled = study(120, 24, 3, 2, target_epsilon=1.0, target_delta=1e-5)
    workbench, parts = Workbench(), dict[str, Value]()
    caught, start = 0, time.perf_counter()
    for bug in ("", *BUGS):
        with planted(bug):
            found = attacked(whole, workbench, 0, m=16_000, r=500)
        caught += found.contradicted
        parts[bug or "no bug"] = (
            f"claimed {found.claimed:.3f}, bound {found.bound:.3f}, "
            f"{'caught' if found.contradicted else 'not contradicted'}"
        )
    parts["seconds_an_audit"] = (time.perf_counter() - start) / (1 + len(BUGS))
    sound = [attacked(sampled, workbench, n, m=2000, r=100) for n in range(args.sound_runs)]
    parts["sound_runs"] = len(sound)
    parts["false_alarms"] = sum(one.contradicted for one in sound)
    parts["largest_bound_of_a_sound_run"] = max((one.bound for one in sound), default=0.0)
    report(
        title=f"Planted bugs caught at 95 % confidence, of {len(BUGS)}",
        figure=caught,
        parts=parts,
        target=f">= {len(BUGS)}, and no false alarm",
        form=args.format,
    )


if __name__ == "__main__":
    main()
