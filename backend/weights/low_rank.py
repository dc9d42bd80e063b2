"""Products of thin matrices added to weights and rounded once: compiled loops where numba is installed, else NumPy.

Each number comes from its own row and column alone: the product is added up in float32, one rank after the other, and
meets the weight in float64. So the bytes depend neither on which rows are asked for together nor on threads. Rounding
to 16 bit goes through a float32 that is rounded to odd, which gives the number nearest to the float64 one (Boldo and
Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
"""

import numpy as np
from numpy.typing import NDArray

from backend.weights.floats import Bytes, Floats, from_float32, to_float32

Doubles = NDArray[np.float64]


def product(left: Floats, right: Floats) -> Floats:
    """Multiply two matrices, adding up in the order of the ranks.

    Args:
        left: [rows, rank].
        right: [rank, columns].
    """
    out = np.zeros((len(left), right.shape[1]), np.float32)
    for k in range(len(right)):
        out += left[:, k, None] * right[k]
    return out


def add(raw: Bytes, dtype: str, more: Floats, target: str) -> Bytes:
    """Add a matrix to weights.

    Args:
        raw: Bytes of the weights, in the order of `more`.
        dtype: Their type, as safetensors names it.
        more: Any shape.
        target: The type of the result.
    """
    return nearest(exact(raw, dtype) + more.reshape(-1), target)


def exact(raw: Bytes, dtype: str) -> Doubles:
    """Give the numbers in raw bytes of any floating-point type."""
    return raw.view(np.float64) if dtype == "F64" else to_float32(raw, dtype).astype(np.float64)


def nearest(values: Doubles, target: str) -> Bytes:
    """Give the bytes of numbers rounded once to another type, to nearest, ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        if target != "BF16":
            return values.astype({"F16": np.float16, "F32": np.float32}[target]).reshape(-1).view(np.uint8)
        single = values.astype(np.float32)
        bits = single.view(np.uint32)
        step = np.where(np.abs(values) > np.abs(single), 1, -1)
        move = (single != values) & (bits % 2 == 0) & ~np.isnan(values)
        return from_float32((bits + np.where(move, step, 0)).astype(np.uint32).view(np.float32), target)
