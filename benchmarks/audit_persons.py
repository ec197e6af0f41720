"""Whether ε holds for a person with 50 records, by an audit whose canaries are such persons.

MiniLM with A frozen, r = 8, among 100 persons with four records each. Where the unit is a person,
six steps see a twentieth of the persons at a claim of ε = 1: sound runs, then each planted bug.
Where the unit is a record, one step with all records claims ε = 0.1 for each: what the audit shows of
a person with 50, between that and what `study plan` computes; and the same attack where ε = 0.1 is
promised to persons.
"""

import time
from dataclasses import replace

import numpy as np

import _minilm
from _planted import PERSON_BUGS, planted
from _report import Value, parser, report
from fedpact.client.audit import PERSON_RECORDS, Audit, audit
from fedpact.client.workbench import Workbench
from fedpact.common.records import EncodedRecords, person_numbers
from fedpact.common.study import Study

SITE = "Clinic"
PERSONS, RECORDS = 100, 400
SOUND_RUNS = 10


def study(unit: str, batch: int, rounds: int, steps: int, epsilon: float) -> Study:
    """MiniLM at one site, with a promise to persons or to records."""
    document = _minilm.study().model_dump()
    document["training"] |= {"rounds": rounds, "local_steps": steps, "batch_size": batch}
    document["privacy"] |= {"mechanism": "dp-sgd", "unit": unit, "target_epsilon": epsilon}
    if unit == "person":
        document["task"]["person_column"] = "patient"
        document["privacy"]["max_records_per_person"] = PERSON_RECORDS
    size = {"records": RECORDS, "persons": PERSONS}
    document["institutions"] = [{"name": SITE, "sector": "academia", **size}]
    return Study.model_validate(document)


def records() -> EncodedRecords:
    """Short texts that say nothing, of persons in turn."""
    rng = np.random.default_rng(0)
    made = _minilm.records(rng.integers(4, 13, RECORDS))
    persons = person_numbers([f"patient {n % PERSONS}" for n in range(RECORDS)])
    return replace(made, persons=persons)


def main() -> None:
    command_line = parser(__doc__)
    command_line.add_argument("--sound-runs", type=int, default=SOUND_RUNS)
    args = command_line.parse_args()
    crowd, workbench, parts = records(), Workbench(), dict[str, Value]()

    def attacked(what: Study, seed: int, m: int, r: int, each: int | None = None) -> Audit:
        rng = np.random.default_rng(seed)
        return audit(
            what, SITE, crowd, workbench, canaries=m, guesses=r, canary_records=each, rng=rng
        )

    start = time.perf_counter()
    of_persons = study("person", 5, 3, 2, 1.0)
    caught = 0
    for bug in PERSON_BUGS:
        with planted(bug):
            found = attacked(of_persons, 0, 400, 40)
        caught += found.contradicted
        parts[bug] = f"claimed {found.claimed:.3f}, bound {found.bound:.3f}"
    parts["seconds_an_audit"] = (time.perf_counter() - start) / len(PERSON_BUGS)
    sound = [attacked(of_persons, seed, 400, 40) for seed in range(args.sound_runs)]
    parts["sound_runs"] = len(sound)
    parts["false_alarms"] = sum(one.contradicted for one in sound)
    parts["largest_bound_of_a_sound_run"] = max((one.bound for one in sound), default=0.0)
    of_records = study("record", RECORDS, 1, 1, 0.1)
    for each in (1, PERSON_RECORDS):
        found = attacked(of_records, 0, 400, 200, each)
        parts[f"record_unit_{each}_records"] = (
            f"claimed {found.claimed:.3f} for a record, bound {found.bound:.3f}, "
            f"planned {found.covered:.3f} for a person with so many"
        )
    alike = study("person", PERSONS, 1, 1, 0.1)
    found = attacked(alike, 0, 400, 200)
    parts["person_unit_50_records"] = (
        f"claimed {found.claimed:.3f} for a person, bound {found.bound:.3f}"
    )
    report(
        title=f"Planted person bugs caught at 95 % confidence, of {len(PERSON_BUGS)}",
        figure=caught,
        parts=parts,
        target=f">= {len(PERSON_BUGS)}, and no false alarm",
        form=args.format,
    )


if __name__ == "__main__":
    main()
