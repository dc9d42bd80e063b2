"""Floating-point types that NumPy lacks, and casts between them: rounded to nearest, ties to even, as torch does."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.weights.compiled import compiled

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

SAFETENSORS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""torch's names and those of safetensors."""

FLOATS = frozenset({"BF16", "F16", "F32", "F64"})

INTEGERS: dict[str, Any] = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}
"""What the bits of a type are read as."""

INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
"""The bits of infinity: of all magnitudes, those from here on are infinite or no number."""


EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0"})
"""Types of 8 bits that to_float32() reads (OCP OFP8 and MX formats, 1.0); the last holds powers of two alone."""


def named_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the type that a config names, if models are computed in it."""
    named = config.get("dtype") or config.get("torch_dtype")
    return named if isinstance(named, str) and named in SAFETENSORS else None


def is_finite(raw: Bytes, dtype: str) -> bool:
    """Return whether raw bytes hold neither infinities nor NaNs."""
    if dtype not in FLOATS:
        return True
    bits = raw.view(INTEGERS[dtype])
    if dtype != "F64" and (loop := compiled(f"largest_{dtype}")) is not None:
        return bool(loop(bits, len(bits)) < INFINITY[dtype])
    exponent = INTEGERS[dtype](INFINITY[dtype])
    return not bool(((bits & exponent) == exponent).any())


def to_float32(raw: Bytes, dtype: str) -> Floats:
    """Return the numbers in raw bytes of a floating-point type; exact but for F64."""
    if dtype == "BF16":
        return np.left_shift(raw.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    if dtype in EIGHT_BITS:
        return np.take(_eight_bits(dtype), raw, mode="clip")
    if dtype == "F4":
        return np.take(_PAIRS, raw).view(np.float32)
    return raw.view(np.float32) if dtype == "F32" else raw.view(np.float64).astype(np.float32)


_FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Numbers of the type F4 (E2M1 of OCP MX, 1.0), two of which are in a byte, the first in its lower half."""

_PAIRS = np.stack([np.tile(_FOUR_BITS, 16), np.repeat(_FOUR_BITS, 16)], 1).view(np.uint64).reshape(-1)


@cache
def _eight_bits(dtype: str) -> Floats:
    """Return the number that each byte stands for."""
    every = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E8M0":
        numbers = np.ldexp(np.float32(1), np.minimum(every, 254).astype(np.int32) - 127)
        numbers[255] = np.nan
    elif dtype == "F8_E5M2":  # the upper half of a float16
        numbers = (every << 8).view(np.float16).astype(np.float32)
    else:  # a float16 whose exponent is less by 8; nothing is infinite
        numbers = ((every & 0x80) << 8 | (every & 0x7F) << 7).view(np.float16).astype(np.float32) * 256
        numbers[[0x7F, 0xFF]] = np.nan
    return numbers


def from_float32(values: Floats, dtype: str) -> Bytes:
    """Return the bytes of numbers in another type; what is too large becomes infinite."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).view(np.uint8)
    if (loop := compiled("narrow")) is not None:
        out = np.empty(values.shape, np.uint16)
        loop(np.ascontiguousarray(values), values.size, out)
        return out.reshape(-1).view(np.uint8)
    bits = values.reshape(-1).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    rounded[np.isnan(values.reshape(-1))] = 0x7FC0  # adding to the bits of a NaN could make it a number
    return rounded.view(np.uint8)


def transposed(raw: Bytes, shape: tuple[int, ...]) -> Bytes:
    """Return the bytes of a matrix of the shape [rows, columns] as [columns, rows]."""
    grid = raw.reshape(*shape, len(raw) // max(shape[0] * shape[1], 1))
    return np.ascontiguousarray(grid.transpose(1, 0, 2)).reshape(-1)


def cast(raw: Bytes, source: str, target: str) -> Bytes:
    """Cast raw bytes from one type to another; other than floating-point types stay as they are."""
    return raw if source == target or source not in FLOATS else from_float32(to_float32(raw, source), target)
