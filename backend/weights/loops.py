"""The loops that take the time, in the part of Python that numba compiles; kernels.py says what they compute and why.

Imported only where they are compiled: see compiled.py. Arrays come as pointers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from backend.weights.codes import (
    BLOCK,
    LANES,
    NESTED_BLOCK,
    SCALED,
    SUMS,
    TILE,
    TINY,
    Integers,
    Minifloat,
    grid,
)

Loop = Callable[..., Any]

_intrinsic: Callable[[Loop], Any] = intrinsic  # numba's decorators say nothing of what they make
_room: Loop = cgutils.alloca_once
_pointer: Any = types.CPointer
_inline: Callable[[Loop], Any] = njit(inline="always")

_ONE, _HALF = np.float32(1), np.float32(0.5)


class _Kind(NamedTuple):
    """A floating-point type: the integers that its numbers are read as, and how these become float32."""

    bits: Any
    magnitude: Any  # all bits but the sign
    value: Loop


@_intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    """Take 32 bits for a float32."""
    return types.float32(types.uint32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@_intrinsic
def _as_bits(context: Any, value: Any) -> Any:
    """Take a float32 for 32 bits."""
    return types.uint32(types.float32), lambda _, builder, __, args: builder.bitcast(args[0], ir.IntType(32))


@_intrinsic
def _on_stack(context: Any) -> Any:
    """Return room for SUMS float32, which nothing else points to: the sums stay in registers."""

    def room(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        place = _room(builder, ir.ArrayType(ir.FloatType(), SUMS))
        return builder.bitcast(place, ir.FloatType().as_pointer())

    return _pointer(types.float32)(), room


@_inline
def _larger(a: Any, b: Any) -> Any:
    return a if a > b else b  # numba's own max() could fail for all that LLVM knows, and would call Python then


@_inline
def _smaller(a: Any, b: Any) -> Any:
    return b if a > b else a


@_inline
def _of_bfloat16(bits: Any) -> Any:
    return _as_float(np.uint32(np.uint32(bits) << np.uint32(16)))


@_inline
def _of_float16(bits: Any) -> Any:
    """Shift the exponent into place and correct its bias by an exact product, which also serves subnormal numbers."""
    magnitude = np.uint32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13))
    sign = np.uint32(np.uint32(bits & np.uint16(0x8000)) << np.uint32(16))
    return _as_float(np.uint32(_as_bits(np.float32(_as_float(magnitude) * np.float32(2.0**112))) | sign))


@_inline
def _of_float32(bits: Any) -> Any:
    return _as_float(bits)


_KINDS = {
    "BF16": _Kind(np.uint16, np.uint16(0x7FFF), _of_bfloat16),
    "F16": _Kind(np.uint16, np.uint16(0x7FFF), _of_float16),
    "F32": _Kind(np.uint32, np.uint32(0x7FFFFFFF), _of_float32),
}


@njit(inline="always")
def _to_odd(exact: Any) -> Any:
    """Round a float64 to the bits of a float32: of the two next to it, the odd one."""
    near = np.float32(exact)
    bits = _as_bits(near)
    rest = np.float64(near) - exact
    even = (bits & np.uint32(1)) == np.uint32(0)
    up = abs(exact) > abs(np.float64(near))
    moved = np.uint32(bits + np.uint32(1)) if up else np.uint32(bits - np.uint32(1))
    return moved if (rest != 0.0 and even) else bits


def _largest(kind: _Kind) -> Loop:
    dtype, mask, _ = kind

    def largest(source: Any, elements: int) -> int:
        """Return the bits of the largest magnitude."""
        top = dtype(0)
        for j in range(elements):
            top = _larger(top, dtype(source[j] & mask))
        return np.int64(top)  # type: ignore[return-value]

    return largest


def _pack_4bit(kind: _Kind, quant_type: str) -> Loop:
    dtype, mask, value = kind
    bounds, order = grid(quant_type)
    start, steps = np.uint8(order[0]), np.diff(order)  # a code is the first one and a step for each bound below it

    @_inline
    def code(x: Any) -> Any:
        found = start
        for k in range(15):
            found += np.uint8(x > bounds[k]) * steps[k]
        return np.uint8(found)

    def pack_4bit(source: Any, blocks: int, packed: Any, absmax: Any) -> None:
        """Quantize whole blocks to two codes a byte."""
        for i in range(blocks):
            first, largest = i * BLOCK, dtype(0)
            for j in range(first, first + BLOCK):
                largest = _larger(largest, dtype(source[j] & mask))
            absmax[i] = value(largest)
            inverse = _ONE / _larger(value(largest), TINY)
            for j in range(first // 2, first // 2 + BLOCK // 2):
                upper, lower = code(value(source[2 * j]) * inverse), code(value(source[2 * j + 1]) * inverse)
                packed[j] = upper << np.uint8(4) | lower

    return pack_4bit


def _narrow(source: Any, elements: int, target: Any) -> None:
    """Round float32 to bfloat16, ties to even; a NaN stays one."""
    for j in range(elements):
        bits = source[j]
        rounded = np.uint32(bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[j] = np.uint16(0x7FC0) if nan else np.uint16(rounded)


def _quantize_rows(source: Any, rows: int, columns: int, target: Any, scale: Any) -> None:
    """Quantize rows of float16 to 8 bit; the scale of a row is its largest magnitude."""
    for i in range(rows):
        first, largest = i * columns, np.uint16(0)
        for j in range(first, first + columns):
            largest = _larger(largest, np.uint16(source[j] & np.uint16(0x7FFF)))
        scale[i] = _of_float16(largest)
        # a number divided by a tensor is torch's reciprocal times the number: two roundings
        factor = np.float32(_ONE / scale[i]) * np.float32(127) if largest else np.float32(0)
        for j in range(first, first + columns):
            target[j] = np.int8(np.rint(np.float32(_of_float16(source[j]) * factor)))


def _sum_in_order(values: Any, elements: int, power: int, levels: Any) -> float:
    """Add up as torch does: eight lanes, four independent sums a lane, four levels of partial sums, then the rest."""
    width = 4 * LANES
    for j in range(4 * width):
        levels[j] = np.float32(0)
    rows, step, i = elements // LANES, 1 << power, 0
    while i < rows // 4:
        full = i + step <= rows // 4
        for row in range(i, i + step if full else rows // 4):
            for lane in range(width):
                levels[lane] += values[row * width + lane]
        i += step
        for level in range(1, 4 if full else 0):
            for lane in range(level * width, (level + 1) * width):
                levels[lane] += levels[lane - width]
                levels[lane - width] = np.float32(0)
            if i & ((step - 1) << level * power):
                break
    for lane in range(width, 4 * width):
        levels[lane % width] += levels[lane]
    for j in range(rows // 4 * width, rows * LANES):
        levels[j % LANES] += values[j]
    for lane in range(LANES, width):
        levels[lane % LANES] += levels[lane]
    total = np.float32(0)
    for j in range(rows * LANES, elements):
        total += values[j]
    for lane in range(LANES):
        total += levels[lane]
    return total  # type: ignore[return-value]


def _quantize_scales(scales: Any, blocks: int, offset: Any, table: Any, target: Any, nested: Any) -> None:
    """Quantize scales, less their mean, to places on the dynamic map in blocks of their own."""
    for i in range(-(-blocks // NESTED_BLOCK)):
        first, last = i * NESTED_BLOCK, _smaller((i + 1) * NESTED_BLOCK, blocks)
        top = np.float32(0)
        for j in range(first, last):
            top = _larger(top, abs(scales[j] - offset))
        nested[i] = top
        inverse = _ONE / top if top > 0 else np.float32(0)
        for j in range(first, last):
            place = np.int64(((scales[j] - offset) * inverse + _ONE) * np.float32(32767.5) + _HALF)
            # a block of zeros has place 0, whatever the map says there
            target[j] = table[_smaller(_larger(place, 0), 65535)] if top > 0 else np.uint8(0)


def _merge(kind: _Kind) -> Loop:
    value = kind.value

    def merge(  # noqa: PLR0913 - machine code has no objects
        source: Any,
        rows: int,
        columns: int,
        rank: int,
        left: Any,
        right: Any,
        gain: Any,
        gains: Any,
        sums: Any,
        odd: Any,
    ) -> None:
        """Add a product to weights; low_rank.py says what comes out, which takes the place of `odd`'s numbers."""
        for start in range(0, columns, TILE):
            width = _smaller(TILE, columns - start)
            for i in range(rows):
                for j in range(width):
                    sums[j] = 0.0
                for k in range(rank):
                    factor, at = left[i * rank + k], k * columns + start
                    for j in range(width):
                        sums[j] += factor * right[at + j]
                at = i * columns + start
                for j in range(width):
                    weight = np.float64(value(source[at + j]))
                    exact = weight * (1.0 + gain[i] + gains[start + j]) + sums[j]
                    odd[at + j] = _to_odd(exact)

    return merge


def _magnitudes(kind: _Kind) -> Loop:
    dtype, mask, value = kind

    def magnitudes(source: Any, rows: int, columns: int, width: int, tops: Any) -> None:
        """Find the largest magnitude of each group of neighbors in a row."""
        groups = (columns + width - 1) // width
        for i in range(rows):
            for g in range(groups):
                first, largest = i * columns + g * width, dtype(0)
                for j in range(first, first + _smaller(width, columns - g * width)):
                    largest = _larger(largest, dtype(source[j] & mask))
                tops[i * groups + g] = value(largest)

    return magnitudes


class _Code(NamedTuple):
    """How a number that is divided by its scale becomes one of a grid, and this a code."""

    rounded: Loop
    code: Loop


def _of_integers(kind: Integers) -> _Code:
    half = 1 << (kind.bits - 1)
    lowest, highest, shift = np.float32(-half), np.float32(half - 1), np.int32(half)

    @_inline
    def rounded(x: Any) -> Any:
        return _smaller(_larger(np.float32(np.rint(x)), lowest), highest)

    @_inline
    def code(x: Any) -> Any:
        return np.uint8(np.int32(x) + shift)

    return _Code(rounded, code)


def _of_minifloats(kind: Minifloat) -> _Code:
    shift = np.uint32(23 - kind.mantissa)
    half = np.uint32((1 << (22 - kind.mantissa)) - 1)
    kept = np.uint32(0xFFFFFFFF >> shift << shift)
    lowest, largest = np.float32(2.0 ** (1 - kind.bias)), np.float32(kind.largest)
    even = np.float32(2.0 ** (24 - kind.bias - kind.mantissa))  # the sum with it is rounded to a step below `lowest`
    moved = np.uint32((127 - kind.bias) << kind.mantissa)
    sign, down = np.uint32(0x80000000), np.uint32(32 - kind.bits)

    @_inline
    def rounded(x: Any) -> Any:
        bits = _as_bits(x)
        size = _smaller(_as_float(np.uint32(bits & ~sign)), largest)
        at = _as_bits(size)
        normal = _as_float(np.uint32(np.uint32(at + half + ((at >> shift) & np.uint32(1))) & kept))
        found = normal if size >= lowest else np.float32(np.float32(size + even) - even)
        return _as_float(np.uint32(_as_bits(found) | (bits & sign)))

    @_inline
    def code(x: Any) -> Any:
        bits = _as_bits(x)
        size = np.uint32(bits & ~sign)
        small = np.uint32(_as_bits(np.float32(_as_float(size) + even)) - _as_bits(even))
        normal = np.uint32(np.uint32(size >> shift) - moved)
        found = normal if _as_float(size) >= lowest else small
        return np.uint8(found | np.uint32(np.uint32(bits & sign) >> down))

    return _Code(rounded, code)


def _encode(kind: _Kind, grid_of: Integers | Minifloat) -> Loop:
    value = kind.value
    rounded, code = _of_integers(grid_of) if isinstance(grid_of, Integers) else _of_minifloats(grid_of)
    halves = grid_of.bits == 4

    @_inline
    def error(source: Any, first: int, last: int, scale: Any) -> Any:
        sums = _on_stack()
        for k in range(SUMS):
            sums[k] = np.float32(0)
        for start in range(first, last, SUMS):
            for k in range(SUMS):
                x = value(source[start + k])
                rest = np.float32(x - np.float32(rounded(np.float32(x / scale)) * scale))
                sums[k] += np.float32(rest * rest)
        for width in (16, 8, 4, 2, 1):
            for k in range(width):
                sums[k] += sums[k + width]
        return sums[0]

    def encode(  # noqa: PLR0913 - machine code has no objects
        source: Any, rows: int, columns: int, width: int, scales: Any, count: int, best: Any, codes: Any
    ) -> None:
        """Write the codes of groups of neighbors with the one of their scales that loses least, the first of equals."""
        groups = (columns + width - 1) // width
        for group in range(rows * groups):
            start = group % groups * width
            first = group // groups * columns + start
            last = first + _smaller(width, columns - start)
            chosen, least = 0, np.float32(np.inf)
            for k in range(count if count > 1 else 0):
                lost = error(source, first, last, scales[group * count + k])
                chosen = k if lost < least else chosen
                least = _smaller(least, lost)
            best[group] = chosen
            scale = scales[group * count + chosen]
            if halves:
                for j in range(first // 2, last // 2, SUMS // 2):
                    for k in range(j, j + SUMS // 2):
                        low = code(rounded(np.float32(value(source[2 * k]) / scale)))
                        high = code(rounded(np.float32(value(source[2 * k + 1]) / scale)))
                        codes[k] = low | high << np.uint8(4)
            else:
                for j in range(first, last):
                    codes[j] = code(rounded(np.float32(value(source[j]) / scale)))

    return encode


LOOPS: dict[str, Loop] = {
    **{f"magnitudes_{name}": _magnitudes(kind) for name, kind in _KINDS.items()},
    **{f"encode_{code}_{name}": _encode(kind, grid) for code, grid in SCALED.items() for name, kind in _KINDS.items()},
    **{f"merge_{name}": _merge(kind) for name, kind in _KINDS.items()},
    **{f"largest_{name}": _largest(kind) for name, kind in _KINDS.items()},
    **{f"pack_{code}_{name}": _pack_4bit(kind, code) for code in ("nf4", "fp4") for name, kind in _KINDS.items()},
    "narrow": _narrow,
    "quantize_rows": _quantize_rows,
    "sum_in_order": _sum_in_order,
    "quantize_scales": _quantize_scales,
}
