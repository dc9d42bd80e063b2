"""Intervals: how far figures may be off, by the bootstrap over whole windows or rows (Efron and Tibshirani 1993).

Tokens of one window depend on each other, windows hardly: whole ones are drawn again. The percentiles of few are too
close to each other, and are moved apart as Hesterberg does it (arXiv 1411.5279, section 4.3).
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
"""Its lower and its upper end."""

LEVEL = 0.95

FEWEST = 5
"""Windows, or rows, below which no interval is given: it would say nothing."""

RESAMPLES, SEED = 4000, 0

Sums = NDArray[np.float64]


def intervals(sums: Sums, figures: Callable[[Sums], Sums]) -> list[Interval] | None:
    """Return the intervals at LEVEL of figures that come from sums; None where there is too little to draw from.

    Args:
        sums: Of each window or row, [windows, sums].
        figures: Makes of the sums over all drawn, [draws, sums], the figures, [draws, figures].
    """
    count = len(sums)
    if count < FEWEST:
        return None
    random = np.random.default_rng(SEED)
    shares = np.full(count, 1 / count)
    drawn = np.stack([random.multinomial(count, shares) @ sums for _ in range(RESAMPLES)])
    outside = _outside(count)
    low, high = np.quantile(figures(drawn), [outside, 1 - outside], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _outside(count: int) -> float:
    """Return the share of draws that is left out at either end, fewer than (1 - LEVEL) / 2 where few were drawn from.

    Student's t comes from its expansion in powers of 1 / degrees of freedom (Abramowitz and Stegun 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    free = count - 1
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    student += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return NormalDist().cdf(-student * math.sqrt(count / free))


def between(interval: Interval | None, digits: str) -> str:
    """Write an interval behind its figure: ` [0.051, 0.062]`; nothing where there is none.

    Args:
        interval: The two ends.
        digits: How numbers are formatted: `.4f`, `.1%`.
    """
    return f" [{interval[0]:{digits}}, {interval[1]:{digits}}]" if interval else ""
