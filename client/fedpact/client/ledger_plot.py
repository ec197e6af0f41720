"""ε over time as a picture for terminals: one for each data set, with its cap as a line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.text import Text

from fedpact.client.ledger import Reservation
from fedpact.client.statement import Statement
from fedpact.common import accounting
from fedpact.common.mechanism import Mechanism

WIDTH: Final = 60
HEIGHT: Final = 10


@dataclass(frozen=True)
class Point:
    """What had been spent at a moment; infinite after something without DP."""

    at: datetime
    epsilon: float


def course(history: Sequence[Reservation], delta: float, points: int = WIDTH) -> list[Point]:
    """What was spent after each reservation, or after some of them, the last included.

    Args:
        history: what counts, the oldest first.
        delta: at which δ.
        points: how many at most.
    """
    chosen = {math.ceil((n + 1) * len(history) / points) - 1 for n in range(points)}
    found, ran = [], list[Mechanism]()
    for number, entry in enumerate(history):
        if None in entry.counted:
            found.append(Point(entry.reserved_at, math.inf))
            break
        ran += [mechanism for mechanism in entry.counted if mechanism is not None]
        if number in chosen:
            found.append(Point(entry.reserved_at, accounting.epsilon(ran, delta)))
    return found


def picture(statement: Statement, points: Sequence[Point]) -> Text:
    """Draw it: time goes to the right in equal steps from the first moment to the last.

    An ε above the scale, which ends a little above the cap, stands at its top.
    """
    heading = (
        f"{statement.dataset}: ε at δ = {statement.delta:.3g}, for adding or removing one "
        f"{statement.unit}, cap {statement.cap:.4g}"
    )
    if not points:
        return Text(f"{heading}\nnothing spent")
    spent = [point.epsilon for point in points if math.isfinite(point.epsilon)]
    top = max(statement.cap * 1.1, *spent, 0.0)
    columns = _columns(points)
    cap_row = _row(statement.cap, top)
    text = Text(f"{heading}\n")
    for row in range(HEIGHT, 0, -1):
        label = statement.cap if row == cap_row else 0.0 if row == 1 else None
        text.append(f"{'' if label is None else f'{label:.3g}':>8} ")
        line = "".join(
            "█" if epsilon > 0 and _row(epsilon, top) >= row else "─" if row == cap_row else " "
            for epsilon in columns
        )
        text.append(line.rstrip(), style="red" if row >= cap_row else "")
        text.append("\n")
    first, last = (f"{point.at:%Y-%m-%d %H:%M}" for point in (points[0], points[-1]))
    text.append(f"{'':>9}{first}{last:>{WIDTH - len(first)}} UTC")
    return text


def _columns(points: Sequence[Point]) -> list[float]:
    """What had been spent at each column's moment."""
    first, last = points[0].at.timestamp(), points[-1].at.timestamp()
    columns, index = [], 0
    for column in range(WIDTH):
        moment = first + (last - first) * column / (WIDTH - 1)
        while index + 1 < len(points) and points[index + 1].at.timestamp() <= moment:
            index += 1
        columns.append(points[index].epsilon)
    columns[-1] = points[-1].epsilon
    return columns


def _row(epsilon: float, top: float) -> int:
    """The row, from 1 at the bottom, that an ε reaches."""
    return HEIGHT if math.isinf(epsilon) else min(HEIGHT, math.ceil(HEIGHT * epsilon / top))
