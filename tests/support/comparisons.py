"""Small comparisons among sites of the tiny BERT."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from fedpact.simulations import comparison
from fedpact.simulations.comparing import Comparison, compare
from support.tiny_bert import write_data

SITES = 2
ROUNDS = 2


def prepare(tiny, folder: Path, **sections: dict) -> Path:
    """A folder with a study, its data and its public test set; the study's path."""
    write_data(folder / "public.csv", records=40, seed=99)
    write_data(folder / "data.csv", records=120)
    sections = {"training": {"rounds": ROUNDS}, "institutions": [], **sections}
    return tiny.write_study(
        folder / "study.toml", evaluation={"data": "public.csv"}, **sections
    )


def run(study: Path, *axes: str, folder: str = "compared", **asked):
    """Compare; the result and what was said meanwhile."""
    said = StringIO()
    asked = {"variants": comparison.variants(axes), "seeds": (0, 1), "sites": SITES, **asked}
    result = compare(
        Comparison(study, folder=study.parent / folder, **asked), Console(file=said)
    )
    return result, said.getvalue()
