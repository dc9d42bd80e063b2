"""Plots: lines over steps as SVG, drawn here: nothing is loaded, nothing flickers when they are drawn again."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ui.kit.format import escape

LARGE, SMALL = (480, 190), (300, 150)
"""Sizes of a plot, about as many pixels as a narrow page gives it; its letters grow with it."""

POINTS = 240
"""Most points of a line; where there are more, each is the mean of its neighbors."""

# room for the axes' numbers
_LEFT = 52
_RIGHT = 14
_TOP = 12
_BOTTOM = 26
_TICKS = 4


class Line(NamedTuple):
    """One line: its name, its kind (a class of page.css), and values by step."""

    name: str
    kind: str
    points: Sequence[tuple[int, float]]


class Frame(NamedTuple):
    """The part of the numbers that is shown, and where."""

    width: int
    height: int
    last: int  # steps go from 0 to this
    low: float
    high: float

    def x(self, step: float) -> float:
        """Return where a step stands."""
        return _LEFT + (self.width - _LEFT - _RIGHT) * min(step / self.last, 1)

    def y(self, value: float) -> float:
        """Return where a value stands."""
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * (value - self.low) / (self.high - self.low)


def plot(title: str, lines: Sequence[Line], last: int, mark: int | None, size: tuple[int, int] = LARGE) -> str:
    """Draw lines over steps.

    Args:
        title: What is drawn, with its unit.
        lines: Those without a point are left out.
        last: The step at the right end.
        mark: A step after which the training resumed, if it was interrupted.
        size: LARGE or SMALL.
    """
    drawn = [line._replace(points=thinned(line.points)) for line in lines if line.points]
    values = [value for line in drawn for _, value in line.points]
    if not values:
        return ""
    rows = ticks(min(values), max(values))
    frame = Frame(*size, max(last, 1), rows[0], rows[-1])
    names = " ".join(f'<span class="{line.kind}">{escape(line.name)}</span>' for line in drawn)
    inside = _grid(frame, rows) + (_mark(frame, mark) if mark else "") + "".join(_line(frame, line) for line in drawn)
    told = "; ".join(f"{line.name} {number(line.points[-1][1])} at step {line.points[-1][0]}" for line in drawn)
    picture = (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(f"{title}: {told}")}">{inside}</svg>'
    )
    legend = names if len(drawn) > 1 else ""
    return f'<figure class="plot"><figcaption><b>{escape(title)}</b>{legend}</figcaption>{picture}</figure>'


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most POINTS points; each then stands for its neighbors: the last step, the mean of the values."""
    size = math.ceil(len(points) / POINTS) or 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def number(value: float) -> str:
    """Write a figure short: 2.31, 0.0002."""
    return f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}".replace("e-0", "e-")


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers around the values, from below the lowest to above the highest."""
    span = (high - low) or abs(high) or 1.0
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step)
    last = math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _grid(frame: Frame, values: Sequence[float]) -> str:
    """Draw the axes: a line for each round value, and the first, middle and last step."""
    right, rows = frame.width - _RIGHT, ""
    for tick in values:
        y = frame.y(tick)
        rows += f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        rows += f'<text class="y" x="{_LEFT - 8}" y="{y + 4:.1f}">{number(tick)}</text>'
    steps = sorted({0, frame.last // 2, frame.last})
    ends = {0: "first", frame.last: "last"}
    columns = "".join(
        f'<text class="x {ends.get(step, "")}" x="{frame.x(step):.1f}" y="{frame.height - 8}">'
        f"{'step ' if step == frame.last else ''}{step:,}</text>"
        for step in steps
    )
    return f'<g class="grid-lines">{rows}{columns}</g>'


def _mark(frame: Frame, step: int) -> str:
    x = frame.x(step)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{frame.height - _BOTTOM}">'
        f"<title>Resumed after step {step}</title></line>"
    )


def _line(frame: Frame, line: Line) -> str:
    """Draw one line, with a dot where few points would make a line hard to see, and each value as a hint."""
    places = [(frame.x(step), frame.y(value), step, value) for step, value in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    seen = 3 if len(places) <= 24 else 1
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{seen}"><title>step {step:,}: {number(value)}</title></circle>'
        for x, y, step, value in places
    )
    return f'<g class="{line.kind}"><polyline points="{path}"/>{dots}</g>'
