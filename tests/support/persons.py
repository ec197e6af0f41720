"""A data set whose records are of persons, and a study that promises to persons."""

from pathlib import Path

from fedpact.common.study import Study
from support.site_factory import INSTITUTION
from support.tiny_bert import TinyBert, some_rows

PERSONS = 30


def write_persons(
    path: Path, records: int = 120, persons: int = PERSONS, prefix: str = "p"
) -> Path:
    """A CSV file whose records go round among persons; the column `who` says whose each is."""
    rows = [
        f"{text},{label},{prefix}{number % persons}"
        for number, (text, label) in enumerate(some_rows(records))
    ]
    path.write_text("\n".join(["text,label,who", *rows]) + "\n", encoding="utf-8")
    return path


def person_study(tiny: TinyBert, most: int = 3, **sections: dict) -> Study:
    """A study whose unit is a person, with `PERSONS` of them at the institution."""
    return tiny.study(**person_sections(most, **sections))


def person_sections(most: int = 3, **sections: dict) -> dict:
    """What such a study says beside the usual."""
    institution = {"sector": "academia", "records": 120, "persons": PERSONS}
    return {
        "task": {"person_column": "who"},
        "institutions": [{"name": INSTITUTION, **institution}],
        **sections,
        "training": {"batch_size": 10, **sections.get("training", {})},
        "privacy": {
            "unit": "person",
            "max_records_per_person": most,
            **sections.get("privacy", {}),
        },
    }
