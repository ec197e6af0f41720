"""Writes one synthetic adverse-event report from the phrases in `report_phrases.toml`.

No single word gives the label away. Grave words are denied, feared or ruled out; serious
outcomes are told in harmless ones; in many reports a second episode (the same patient's
years ago, or somebody else's) ended the other way round, so that one has to read whose
outcome is whose; and some outcomes are debatable, used for both labels alike.

Chance comes from `rng.random()` alone: the rest of `random` may change between Python
versions.
"""

import re
import tomllib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Final, TypeVar

# How often each of the things that make the task hard happens: seldom enough that the few
# private steps of a demo's minutes learn something. More of each makes a harder task.
_PREGNANCY: Final = 0.06
_BORDERLINE: Final = 0.03
_TURNED: Final = 0.1
_FATAL: Final = 0.1  # of the serious ones
_SECOND_EPISODE: Final = 0.04
_SAME_PATIENT: Final = 0.55  # of the second episodes
_OPPOSITE: Final = 0.8  # of the second episodes
_REACTION_FITS: Final = 0.92  # a graver reaction when serious, a milder one when not
_ABOUT_ONESELF: Final = 0.55  # who calls or writes is the patient

_SLOT: Final = re.compile(r"\{(?:(?P<low>\d+)-(?P<high>\d+)|(?P<name>[a-z_]+))\}")
_SENTENCE_START: Final = re.compile(r"(?:^|[.!?] )[a-z](?![A-Z])")
_T = TypeVar("_T")


def write_report(voice: str, *, serious: bool, rng: Random) -> str:
    """Writes one report.

    Args:
        voice: Whose voice: a table of `report_phrases.toml`.
        serious: Whether the event it tells of is serious.
        rng: Where all chance comes from.
    """
    return _Writer(voice, rng).report(serious=serious)


class _Writer:
    """One report being written: the facts of its patient, and the phrases of its story."""

    def __init__(self, voice: str, rng: Random) -> None:
        self._rng = rng
        every = _phrases()
        spoken = every[voice]
        self._register: str = spoken["register"]
        self._pregnancy = self._chance(_PREGNANCY)
        self._about_oneself = self._chance(_ABOUT_ONESELF)
        self._words: ChainMap[str, Any] = ChainMap(
            {},
            spoken["patient_reports" if self._about_oneself else "relative_reports"],
            spoken["pregnancy" if self._pregnancy else "common"],
            spoken,
            every["shared"],
        )
        self._words.update(self._drug(every["drugs"]))
        self._words.update(self._person(every["relatives"]))

    def report(self, *, serious: bool) -> str:
        fits = "graver" if serious == self._chance(_REACTION_FITS) else "milder"
        self._words["reaction"] = self._phrase(f"reaction_{self._register}_{fits}")
        self._words["verdict"] = self._verdict(serious=serious)
        text = re.sub(r"\s+", " ", self._phrase("report")).strip()
        text = re.sub(r"\ba (?=8\d?\b|11\b|18\b)", "an ", text)
        return _SENTENCE_START.sub(lambda start: start.group().upper(), text)

    def _verdict(self, *, serious: bool) -> str:
        may_have_died = self._pregnancy or not self._about_oneself
        self._words["outcome"] = self._outcome(serious=serious, fatal=may_have_died)
        if not self._chance(_SECOND_EPISODE):
            return self._phrase("now")
        past_serious = serious != self._chance(_OPPOSITE)
        if self._chance(_SAME_PATIENT):
            self._words["past"] = self._outcome(serious=past_serious, fatal=self._pregnancy)
            return self._phrase("earlier")
        self._words = self._words.new_child({"they": "they", "them": "them"})
        past = self._outcome(serious=past_serious, fatal=True)
        self._words = self._words.parents
        self._words["past"] = past
        return self._phrase("another")

    def _outcome(self, *, serious: bool, fatal: bool) -> str:
        if self._chance(_BORDERLINE):
            return self._phrase("borderline")
        if serious and fatal and self._chance(_FATAL):
            return self._phrase("fatal")
        tone = "turned" if self._chance(_TURNED) else "plain"
        return self._phrase(f"{'serious' if serious else 'mild'}_{tone}")

    def _drug(self, drugs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        drug = self._pick(drugs)
        other = self._pick([each for each in drugs if each is not drug])
        return {
            "drug": drug["name"],
            "dose": self._pick(drug["doses"]),
            "indication": drug[self._register],
            "other_drug": other["name"],
        }

    def _person(self, relatives: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        if self._pregnancy:
            relatives = [each for each in relatives if "pregnant" in each]
        relative = self._pick(relatives)
        age = self._number(*relative["pregnant" if self._pregnancy else "ages"])
        she, her = ("she", "her") if relative["sex"] == "F" else ("he", "him")
        return {
            "relative": relative["name"],
            "sex": relative["sex"],
            "age": str(age),
            "she": she,
            "her": her,
        }

    def _phrase(self, name: str) -> str:
        """Draws from the list called `name` and fills the slots of what was drawn."""
        found: str | Sequence[str] = self._words[name]
        phrase = found if isinstance(found, str) else self._pick(found)
        return _SLOT.sub(self._fill, phrase)

    def _fill(self, slot: re.Match[str]) -> str:
        if slot["name"]:
            return self._phrase(slot["name"])
        return str(self._number(int(slot["low"]), int(slot["high"])))

    def _pick(self, choices: Sequence[_T]) -> _T:
        return choices[int(self._rng.random() * len(choices))]

    def _number(self, low: int, high: int) -> int:
        return low + int(self._rng.random() * (high - low + 1))

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability


@cache
def _phrases() -> Mapping[str, Any]:
    resource = files("fedpact.simulations") / "report_phrases.toml"
    return tomllib.loads(resource.read_text(encoding="utf-8"))
