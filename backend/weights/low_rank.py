"""Products of thin matrices added to weights and rounded once: compiled loops where numba is installed, else NumPy.

Each number comes from its own row and column alone, in float64 and in the order of the ranks. So the bytes depend
neither on which rows are asked for together nor on threads, and are those nearest to the exact sums.
Rounding to 16 bit goes through a float32 that is rounded to odd, which then rounds to the number nearest to the float64
one (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.weights.codes import TILE
from backend.weights.compiled import compiled
from backend.weights.floats import Bytes, Floats, from_float32, to_float32

Doubles = NDArray[np.float64]


class LowRank(NamedTuple):
    """What is added to a matrix of weights W: W · (gain + gains) + left @ right."""

    left: Doubles  # [rows, rank]
    right: Doubles  # [rank, columns]
    gain: Doubles  # [rows]
    gains: Doubles  # [columns]

    def rows(self, first: int, last: int) -> "LowRank":
        """Return what is added to some rows."""
        return self._replace(left=self.left[first:last], gain=self.gain[first:last])


def add(raw: Bytes, dtype: str, more: LowRank, target: str) -> Bytes:
    """Add to rows of weights.

    Args:
        raw: Bytes of the weights, [rows * columns].
        dtype: Their type, as safetensors names it.
        more: What is added.
        target: The type of the result.
    """
    loop = compiled(f"merge_{dtype}") if dtype != "F64" and target != "F32" else None
    if loop is None:
        return nearest(total(raw, dtype, more), target)
    rank, columns = more.right.shape
    odd = np.empty(len(more.left) * columns, np.uint32)
    sums = np.empty(TILE, np.float64)
    loop(raw, len(more.left), columns, rank, more.left, more.right, more.gain, more.gains, sums, odd)
    return from_float32(odd.view(np.float32), target)


def total(raw: Bytes, dtype: str, more: LowRank) -> Doubles:
    """Return the same sums before they are rounded, [rows, columns]."""
    product = np.zeros((len(more.left), more.right.shape[1]))
    for k in range(len(more.right)):
        product += more.left[:, k, None] * more.right[k]
    factor = 1.0 + more.gain[:, None] + more.gains
    return exact(raw, dtype).reshape(product.shape) * factor + product


def exact(raw: Bytes, dtype: str) -> Doubles:
    """Return the numbers in raw bytes of any floating-point type."""
    return raw.view(np.float64) if dtype == "F64" else to_float32(raw, dtype).astype(np.float64)


def nearest(values: Doubles, target: str) -> Bytes:
    """Return the bytes of numbers rounded once to another type, to nearest, ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        if target == "F32":
            return values.reshape(-1).astype(np.float32).view(np.uint8)
        return from_float32(_to_odd(values.reshape(-1)), target)


def _to_odd(values: Doubles) -> Floats:
    """Round to float32: of the two numbers next to each, to the odd one."""
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    step = np.where(np.abs(values) > np.abs(single), 1, -1)
    move = (single != values) & (bits % 2 == 0)
    return (bits + np.where(move, step, 0)).astype(np.uint32).view(np.float32)
