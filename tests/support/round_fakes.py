"""An exchange and a record for the round loop, both in memory, and a clock that is told."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

import numpy as np

from fedpact.common import wire
from fedpact.common.adapter import Weights
from fedpact.common.evaluation import Metrics
from fedpact.common.study import Study
from fedpact.server.contributions import Contribution
from fedpact.server.diagnostics import Diagnosis
from fedpact.server.round_needs import Answer

Site = Callable[[wire.Packet], wire.Packet]


class FakeClock:
    """Seconds that pass only when someone says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeExchange:
    """Sites that are functions.

    Args:
        sites: what answers for each institution that is present.
        clock: moves on by `look_seconds` whenever someone looks for replies and there is none.
        silent: institutions that are present and never answer.
        twice: institutions whose every answer comes twice.
        behind: institutions whose answer comes only once the next round has begun.
        vanishing: institutions that go away once they were asked.
        returning: institutions that do, and are back when someone has looked in vain.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        clock: FakeClock | None = None,
        *,
        silent: Iterable[str] = (),
        twice: Iterable[str] = (),
        behind: Iterable[str] = (),
        vanishing: Iterable[str] = (),
        returning: Iterable[str] = (),
        look_seconds: float = 1.0,
    ) -> None:
        self.sites = dict(sites)
        self.asked: list[dict[str, wire.Packet]] = []
        self._clock = clock or FakeClock()
        self._silent, self._twice = set(silent), set(twice)
        self._behind, self._returning = set(behind), set(returning)
        self._vanishing = set(vanishing) | self._returning
        self._away: set[str] = set()
        self._look_seconds = look_seconds
        self._waiting: deque[tuple[str, wire.Packet]] = deque()
        self._held: list[tuple[str, wire.Packet]] = []

    def present(self) -> AbstractSet[str]:
        return self.sites.keys() - self._away

    def ask(self, packets: Mapping[str, wire.Packet]) -> None:
        self.asked.append(dict(packets))
        self._waiting.extend(self._held)
        self._held.clear()
        for name, packet in packets.items():
            if name in self._vanishing:
                self._away.add(name)
            if name in self._silent | self._vanishing:
                continue
            reply = (name, self.sites[name](packet))
            if name in self._behind:
                self._held.append(reply)
                continue
            self._waiting.extend([reply] * (2 if name in self._twice else 1))

    def ask_again(self, packets: Mapping[str, wire.Packet]) -> None:
        self.asked.append(dict(packets))
        self._waiting.extend((name, self.sites[name](p)) for name, p in packets.items())

    def replies(self) -> Mapping[str, wire.Packet]:
        if not self._waiting:
            self._clock.now += self._look_seconds
            self._away -= self._returning
            return {}
        return dict([self._waiting.popleft()])

    def lost(self, pending: AbstractSet[str]) -> AbstractSet[str]:
        return pending & self._away


class FakeRecord:
    """What a run wrote down, in the order in which it did.

    Args:
        stop_before: the round before which someone asks the run to stop.
    """

    def __init__(self, stop_before: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.sent: dict[int, dict[str, str]] = {}
        self.answers: dict[int, dict[str, Answer]] = {}
        self.weights: dict[int, Weights] = {}
        self.seconds: dict[int, float] = {}
        self.states_after: dict[int, Weights | None] = {}
        self.diagnoses: dict[int, Diagnosis | None] = {}
        self.metrics: dict[int, Metrics] = {}
        self.contributions: dict[int, Mapping[str, Contribution] | None] = {}
        self.admissions: dict[int, list[tuple[str, Weights, float]]] = {}
        self.reason = ""
        self._stop_before = stop_before

    def begun(self, weights: Weights, number: int = 1) -> None:
        self.first = weights

    def admitted(self, number: int, institution: str, change: Weights, weight: float) -> None:
        self.admissions.setdefault(number, []).append((institution, change, weight))

    def round_started(
        self, number: int, asked: AbstractSet[str], sent: Mapping[str, str] | None = None
    ) -> None:
        self.sent[number] = dict(sent or {})
        self.events.append(("started", number))
        self.answers[number] = dict.fromkeys(asked, Answer("asked"))

    def answered(self, number: int, institution: str, answer: Answer) -> None:
        assert self.answers[number][institution].state == "asked", "decided twice"
        self.answers[number][institution] = answer

    def round_ended(
        self,
        number: int,
        weights: Weights,
        seconds: float,
        state: Weights | None = None,
        diagnosis: Diagnosis | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.events.append(("ended", number))
        self.weights[number] = weights
        self.seconds[number] = seconds
        self.states_after[number] = state
        self.diagnoses[number] = diagnosis

    def measured(
        self,
        number: int,
        metrics: Metrics,
        contributions: Mapping[str, Contribution] | None = None,
    ) -> None:
        self.events.append(("measured", number))
        self.metrics[number] = metrics
        self.contributions[number] = contributions

    def should_stop(self) -> bool:
        started = sum(kind == "started" for kind, _ in self.events)
        return self._stop_before is not None and started >= self._stop_before - 1

    def stopped(self, reason: str) -> None:
        self.reason = reason

    def states(self, number: int) -> dict[str, str]:
        return {name: answer.state for name, answer in self.answers[number].items()}


def study_among(*names: str, records: int = 1000, **sections: dict) -> Study:
    """A study of three rounds among these institutions."""
    institutions = [{"name": n, "sector": "academia", "records": records} for n in names]
    return Study.model_validate(
        {
            "study": {"name": "triage"},
            "task": {"labels": ["mild", "severe"]},
            "model": {"base": "somewhere/bert"},
            "training": {"rounds": 3, "batch_size": 50},
            "institutions": institutions,
            **sections,
        }
    )


def lora_weights(value: float = 0.0) -> Weights:
    """A LoRA adapter of one layer and a head, as PEFT names them; every value the same."""
    shapes = {
        "base_model.model.bert.query.lora_A.weight": (2, 4),
        "base_model.model.bert.query.lora_B.weight": (4, 2),
        "base_model.model.classifier.bias": (2,),
    }
    return Weights.from_tensors({name: np.full(s, value) for name, s in shapes.items()})
