"""How figures of several runs are told: the median and the range."""

import statistics
from collections.abc import Sequence

DIGITS = 4


def spread(values: Sequence[float], digits: int = DIGITS) -> dict[str, float]:
    """Return median and range."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def spreads(runs: Sequence[dict[str, float]], digits: int = DIGITS) -> dict[str, dict[str, float]]:
    """Return median and range of each figure that runs have."""
    return {key: spread([run[key] for run in runs], digits) for key in runs[0]}
