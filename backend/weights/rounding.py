"""Numbers as codes of 8 or 4 bits with a scale for each group of neighbors: compiled, else NumPy, the same bytes.

A number is divided by its scale and rounded to the nearest of the grid, ties to the even one; what lies beyond the grid
becomes its end. compressed-tensors 0.20 computes the same of float32 weights. Of several scales, the one is taken whose
sum of squared errors, in float32, is least.
"""

from typing import NamedTuple

import numpy as np

from backend.weights.codes import SCALED, SUMS, Integers, Minifloat
from backend.weights.compiled import compiled
from backend.weights.floats import Bytes, Floats, from_float32, to_float32
from backend.weights.tensor import BITS

_SMALLEST = {"BF16": 2.0**-126, "F16": 2.0**-24, "F32": 2.0**-126}
"""What a scale of each type is at least: nothing is divided by 0."""


class Rows(NamedTuple):
    """Some rows of a matrix.

    Attributes:
        raw: Their bytes; the numbers are finite.
        dtype: BF16, F16 or F32, as safetensors names it.
        columns: Numbers of a row.
        width: Neighbors that share a scale; the last group of a row may have fewer.
    """

    raw: Bytes
    dtype: str
    columns: int
    width: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return len(self.raw) * 8 // BITS[self.dtype] // self.columns

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.width)


def magnitudes(rows: Rows) -> Floats:
    """Return the largest magnitude of each group, [rows, groups]."""
    tops = np.empty((rows.height, rows.groups), np.float32)
    if (loop := compiled(f"magnitudes_{rows.dtype}")) is not None:
        loop(rows.raw, rows.height, rows.columns, rows.width, tops)
        return tops
    values = np.abs(to_float32(rows.raw, rows.dtype).reshape(rows.height, rows.columns))
    np.maximum.reduceat(values, range(0, rows.columns, rows.width), axis=1, out=tops)
    return tops


def stored(scales: Floats, dtype: str) -> Floats:
    """Return scales as a type holds them."""
    held = to_float32(from_float32(scales, dtype), dtype).reshape(scales.shape)
    return np.maximum(held, np.float32(_SMALLEST[dtype]))


def encode(rows: Rows, code: str, scales: Floats) -> tuple[Bytes, Floats]:
    """Return the codes of rows, and the scale of each group that they are of.

    Args:
        rows: Of codes of 4 bits, or scales to choose from, groups are whole and have a multiple of 32 numbers.
        code: One of SCALED.
        scales: To choose from, [rows, groups, n], positive.

    Returns:
        Two codes of 4 bits a byte, the earlier in its lower half, or one of 8, [rows, columns / codes a byte];
        [rows, groups].
    """
    scales = np.ascontiguousarray(scales)
    best = np.zeros((rows.height, rows.groups), np.uint8)
    codes = np.empty((rows.height, rows.columns * SCALED[code].bits // 8), np.uint8)
    if (loop := compiled(f"encode_{code}_{rows.dtype}")) is not None:
        loop(rows.raw, rows.height, rows.columns, rows.width, scales, scales.shape[-1], best, codes)
        return codes, np.take_along_axis(scales, best[..., None], 2)[..., 0]
    values = to_float32(rows.raw, rows.dtype).reshape(rows.height, rows.columns)
    if scales.shape[-1] > 1:
        best[:] = np.argmin([_error(values, scales[..., k], code) for k in range(scales.shape[-1])], 0)
    chosen = np.take_along_axis(scales, best[..., None], 2)[..., 0]
    every = np.repeat(chosen, rows.width, 1)[:, : rows.columns]
    _codes(_rounded(values / every, SCALED[code]), SCALED[code], codes)
    return codes, chosen


def _error(values: Floats, scales: Floats, code: str) -> Floats:
    """Return the sum of squared errors of each group, added up in the order in which the loop does."""
    scale = scales[..., None]
    groups = values.reshape(*scales.shape, -1)
    squares = np.square(groups - _rounded(groups / scale, SCALED[code]) * scale).reshape(*scales.shape, -1, SUMS)
    sums = np.zeros((*scales.shape, SUMS), np.float32)
    for k in range(squares.shape[-2]):
        sums += squares[..., k, :]
    while (width := sums.shape[-1] // 2) > 0:
        sums = sums[..., :width] + sums[..., width:]
    return sums[..., 0]


def _rounded(values: Floats, grid: Integers | Minifloat) -> Floats:
    """Return the nearest numbers of a grid."""
    if isinstance(grid, Integers):
        half = 1 << (grid.bits - 1)
        return np.clip(np.rint(values), np.float32(-half), np.float32(half - 1))
    sizes = np.minimum(np.abs(values), np.float32(grid.largest))
    _, exponents = np.frexp(sizes)
    steps = np.ldexp(np.float32(1), np.maximum(exponents - 1, 1 - grid.bias) - grid.mantissa)
    found: Floats = np.copysign(np.rint(sizes / steps) * steps, values, dtype=np.float32)
    return found


def _codes(numbers: Floats, grid: Integers | Minifloat, out: Bytes) -> None:
    """Write the codes of numbers of a grid."""
    if isinstance(grid, Integers):
        found = (numbers + (1 << (grid.bits - 1))).astype(np.uint8)
    else:
        # below the smallest power, and from one power to the next, numbers are counted in equal steps
        sizes, least = np.abs(numbers), np.float32(2.0 ** (1 - grid.bias))
        fractions, exponents = np.frexp(np.maximum(sizes, least))
        steps = np.where(sizes < least, sizes / least, 2 * fractions) * (1 << grid.mantissa)
        powers = (exponents - 2 + grid.bias) << grid.mantissa
        signs = np.signbit(numbers).astype(np.int32) << (grid.bits - 1)
        found = (steps.astype(np.int32) + powers | signs).astype(np.uint8)
    out[:] = found if grid.bits == 8 else found[:, ::2] | found[:, 1::2] << 4
