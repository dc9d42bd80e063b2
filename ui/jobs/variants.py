"""The variants that one job has made of a model, side by side: one table, and a picture of size against loss."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from backend.artifacts.artifact import Metrics
from backend.stages.quantize import grid
from ui.jobs.report import within
from ui.kit.format import escape, percent, size
from ui.kit.plot import ticks
from ui.studio import Result, method_name

WIDTH, HEIGHT = 640, 280
# pixels around the plane
LEFT = 56
RIGHT = 24
TOP = 16
BOTTOM = 44
LETTER, LINE = 7.2, 16  # of a label, in pixels

_ROUND = tuple(digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5))
"""Where lines are drawn on the scale of powers."""

_SURE = "{} All variants read the same windows: which of two is better is surer than these intervals make it look."

_HEAD = ("Size", "KL, mean", "KL, 99th percentile", "Same next token", "Flips", "Perplexity", "Tokens/s")


def variants(results: Sequence[Result]) -> str:
    """Write the quantized results of one job side by side, or nothing where there are not two that were measured."""
    measured = [(r, r.artifact.metrics) for r in results if r.artifact.kind == "quantized" and r.artifact.metrics]
    if len(measured) < 2:
        return ""
    measured.sort(key=lambda pair: pair[0].artifact.size)
    head = "".join(f'<th scope="col">{name}</th>' for name in _HEAD)
    rows = "".join(_row(variant_name(r.artifact.options), r.artifact.size, m) for r, m in measured)
    points = [(variant_name(r.artifact.options), r.artifact.size / 1e6, m.kl_mean) for r, m in measured]
    sure = all(m.intervals for _, m in measured)
    told = f'<p class="quiet">{_SURE.format(measured[0][1].sureness)}</p>' if sure else ""
    return (
        '<section class="panel variants"><header><h2>Variants</h2><p>Lower and further left is better: smaller, and'
        f' closer to the original.</p></header>{_picture(points)}<div class="wide"><table><thead><tr><th></th>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></div>{told}</section>"
    )


NAMED = ("bits", "group_size", "layout")
"""Options that a variant's name says."""


def variant_name(options: Mapping[str, Any]) -> str:
    """Name a variant by its method and what tells it apart: GPTQ 4 bit · 64."""
    return f"{method_name(options)} {grid(options)}".strip()


def _row(name: str, made: int, metrics: Metrics) -> str:
    speed, flips = metrics.tokens_per_second, metrics.flips
    figures = (
        size(made),
        f"{metrics.kl_mean:.4f}{within(metrics.interval('kl_mean'), '.4f')}",
        f"{metrics.kl_p99:.3f}",
        percent(metrics.top1_agreement) + within(metrics.interval("top1_agreement"), ".1%"),
        "" if flips is None else percent(flips) + within(metrics.interval("flips"), ".1%"),
        f"{metrics.perplexity:.2f}{within(metrics.interval('perplexity_change'), '+.1%')}",
        f"{speed:.1f} <small>{escape(metrics.engine)}</small>" if speed else "",
    )
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{figure}</td>" for figure in figures)}</tr>'


def _picture(points: Sequence[tuple[str, float, float]]) -> str:
    """Draw points: name, megabytes, nats per token; the latter on a scale of powers, as differences are factors."""
    largest = max(x for _, x, _ in points) * 1.1
    logs = [math.log10(max(y, 1e-4)) for _, _, y in points]
    low = min(logs) - 0.15
    high = max(logs) + 0.15
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, log: float) -> tuple[float, float]:
        return LEFT + across * x / largest, TOP + down * (high - log) / (high - low)

    lines = "".join(
        f'<line x1="{place(x, low)[0]:.0f}" x2="{place(x, low)[0]:.0f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{place(x, low)[0]:.0f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        for x in ticks(0, largest)[:-1]
    )
    for log in (math.log10(n) for n in _ROUND if low <= math.log10(n) <= high):
        y = place(0, log)[1]
        lines += (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.0f}" y2="{y:.0f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{10**log:.4g}</text>'
        )
    labels = _labels([(name, *place(x, log)) for (name, x, _), log in zip(points, logs, strict=True)])
    told = "; ".join(f"{name}: {x:.0f} MB, KL {y:.4f}" for name, x, y in points)
    return (
        f'<svg class="plane" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}">{lines}'
        f'<text x="{LEFT + across / 2}" y="{HEIGHT - 6}" text-anchor="middle">size in MB</text>'
        f'<text x="{LEFT - 48}" y="{TOP - 4}">KL</text>{labels}</svg>'
    )


def _labels(points: Sequence[tuple[str, float, float]]) -> str:
    """Draw dots with their names, each on the side where it fits and below the one that it would cover."""
    drawn = ""
    taken = list[tuple[float, float, float]]()
    for name, x, y in sorted(points, key=lambda point: point[2]):
        width = LETTER * len(name)
        left = x + 9 if x + 9 + width < WIDTH else x - 9 - width
        at = y
        while any(abs(at - other) < LINE and left < end and begin < left + width for begin, end, other in taken):
            at += 2
        taken.append((left, left + width, at))
        drawn += (
            f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5"/>'
            f'<text class="name" x="{left:.0f}" y="{at + 4:.0f}">{escape(name)}</text>'
        )
    return drawn
