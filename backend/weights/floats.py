"""Floating-point types that NumPy lacks, and casts between them: rounded to nearest, ties to even, as torch does."""

from typing import Any

import numpy as np

from backend.weights.kernels import Bytes, Floats

SAFETENSORS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""torch's names and those of safetensors."""

FLOATS = frozenset({"BF16", "F16", "F32", "F64"})


_EXPONENTS: dict[str, tuple[Any, int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}


def is_finite(raw: Bytes, dtype: str) -> bool:
    """Whether raw bytes hold neither infinities nor NaNs, whose exponents have all bits set."""
    if dtype not in _EXPONENTS:
        return True
    integer, exponent = _EXPONENTS[dtype]
    bits = raw.view(integer) & integer(exponent)
    return not bool((bits == exponent).any())


def to_float32(raw: Bytes, dtype: str) -> Floats:
    """Give the numbers in raw bytes of a floating-point type; exact but for F64."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    return raw.view(np.float32) if dtype == "F32" else raw.view(np.float64).astype(np.float32)


def from_float32(values: Floats, dtype: str) -> Bytes:
    """Give the bytes of numbers in another type; what is too large becomes infinite."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        rounded[np.isnan(values)] = 0x7FC0  # adding to the bits of a NaN could make it a number
        return rounded.view(np.uint8)
    with np.errstate(over="ignore"):
        return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).view(np.uint8)


def cast(raw: Bytes, source: str, target: str) -> Bytes:
    """Cast raw bytes from one type to another; other than floating-point types stay as they are."""
    return raw if source == target or source not in FLOATS else from_float32(to_float32(raw, source), target)
