"""Codes: the grids of the formats of 4 and 8 bits, the sizes of their blocks, and of what the loops have in hand."""

from typing import NamedTuple

import numpy as np

from backend.weights.floats import Bytes, Floats

BLOCK = 64
"""Elements that share a scale."""

NESTED_BLOCK = 256
"""Scales that share a scale of their own."""

TILE = 512
"""Columns of a matrix whose sums stay in the cache while a product is added to it."""

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)  # fmt: skip

FP4 = np.array(
    [0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
     0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25],
    np.float32,
)  # fmt: skip

CODES = {"nf4": NF4, "fp4": FP4}

_FP4_ORDER = np.array([11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3], np.uint8)

_ORDERS = {"nf4": np.arange(16, dtype=np.uint8), "fp4": _FP4_ORDER}  # from place on the sorted grid to code

TINY = np.float32(1e-38)


def grid(quant_type: str) -> tuple[Floats, Bytes]:
    """Return the 15 bounds between neighbors of the sorted 4-bit grid, and the code of each of its 16 places."""
    order = _ORDERS[quant_type]
    code = CODES[quant_type][order]
    return (code[:-1] + code[1:]) / np.float32(2), order


LANES = 8
"""Floats of an AVX2 register, in which torch adds up also where AVX-512 is there."""


class Integers(NamedTuple):
    """Signed integers, to which half of their range is added where they are stored."""

    bits: int


class Minifloat(NamedTuple):
    """Floating-point numbers without infinities (OCP OFP8 and MX, 1.0)."""

    bits: int
    mantissa: int  # bits of it
    bias: int  # of the exponent
    largest: float


E2M1, E4M3 = Minifloat(4, 1, 1, 6.0), Minifloat(8, 3, 7, 448.0)

SCALED: dict[str, Integers | Minifloat] = {"int4": Integers(4), "int8": Integers(8), "e2m1": E2M1, "e4m3": E4M3}
"""What numbers become once they are divided by a scale; ties go to the even code."""

SUMS = 32
"""Sums that errors are added up in, side by side."""
