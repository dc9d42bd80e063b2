"""The arithmetic of bitsandbytes' formats on arrays: compiled where numba is installed, else NumPy, the same bytes.

What is computed, step by step in float32, is what bitsandbytes 0.50 computes on a CPU: `quantize_4bit` (NF4 and FP4 of
QLoRA, arXiv 2305.14314), `quantize_blockwise` for the scales of double quantization, and LLM.int8()'s rows
(arXiv 2208.07339). Multiplications by a reciprocal stay such: a division would round differently.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from backend.weights.codes import BLOCK, LANES, NESTED_BLOCK, TINY, grid
from backend.weights.compiled import compiled
from backend.weights.floats import Bytes, Floats, to_float32
from backend.weights.tensor import BITS

_ONE, _HALF = np.float32(1), np.float32(0.5)


def quantize_4bit(raw: Bytes, dtype: str, quant_type: str) -> tuple[Bytes, Floats]:
    """Quantize a run of whole blocks, or the end of a tensor.

    Args:
        raw: [n * bytes of dtype], the bytes of finite numbers; n is a multiple of 64 but at the end of a tensor.
        dtype: As safetensors names it: BF16, F16 or F32.
        quant_type: "nf4" or "fp4".

    Returns:
        Two codes a byte, the earlier in the upper half, [ceil(n / 2)]; the largest magnitude of each block,
        [ceil(n / 64)].
    """
    width = BITS[dtype] // 8
    elements = len(raw) // width
    packed = np.empty(-(-elements // 2), np.uint8)
    absmax = np.empty(-(-elements // BLOCK), np.float32)
    blocks, rest = divmod(elements, BLOCK)
    full = raw[: blocks * BLOCK * width]
    if (loop := compiled(f"pack_{quant_type}_{dtype}")) is not None:
        loop(full, blocks, packed, absmax)
    else:
        _pack_numpy(to_float32(full, dtype).reshape(-1, BLOCK), quant_type, packed, absmax)
    if rest:
        bounds, order = grid(quant_type)
        tail = to_float32(raw[len(full) :], dtype)
        absmax[-1] = max(np.abs(tail).max(), TINY)
        scaled = np.zeros(rest + rest % 2, np.float32)  # an odd end is filled up with a zero
        scaled[:rest] = np.clip(tail / absmax[-1], -1, 1)
        codes = order[np.searchsorted(bounds, scaled)]
        packed[blocks * BLOCK // 2 :] = codes[::2] << 4 | codes[1::2]
    return packed, absmax


def _pack_numpy(blocks: Floats, quant_type: str, packed: Bytes, absmax: Floats) -> None:
    bounds, order = grid(quant_type)
    tops = absmax[: len(blocks)]
    tops[:] = np.abs(blocks).max(1, initial=0)
    scaled = (blocks * (_ONE / np.maximum(tops, TINY))[:, None]).reshape(-1)
    codes = order[np.searchsorted(bounds, scaled)]
    packed[: len(codes) // 2] = codes[::2] << 4 | codes[1::2]


def quantize_absmax(absmax: Floats, threads: int) -> tuple[Bytes, Floats, np.float32]:
    """Quantize the scales of a tensor: double quantization.

    Args:
        absmax: [blocks], of the whole tensor.
        threads: As many as torch would use: it adds up in as many parts, and the order of a sum is in its last bit.

    Returns:
        Places on the dynamic map, [blocks]; the scale of each 256 of them; the offset that was subtracted.
    """
    offset = np.float32(sum_like_torch(absmax, threads) / np.float32(len(absmax)))
    out = np.zeros(len(absmax), np.uint8)
    nested = np.zeros(-(-len(absmax) // NESTED_BLOCK), np.float32)
    if (loop := compiled("quantize_scales")) is not None:
        loop(absmax, len(absmax), offset, _nearest(), out, nested)
        return out, nested, offset
    centred, table = absmax - offset, _nearest()
    for i in range(len(nested)):
        block = centred[i * NESTED_BLOCK : (i + 1) * NESTED_BLOCK]
        nested[i] = np.abs(block).max()
        if nested[i] > 0:  # a block of zeros has place 0, whatever the map says there
            scaled = block * (_ONE / nested[i])
            places = ((scaled + _ONE) * np.float32(32767.5) + _HALF).astype(np.int64)
            out[i * NESTED_BLOCK : (i + 1) * NESTED_BLOCK] = table[places.clip(0, 65535)]
    return out, nested, offset


def quantize_rows(values: NDArray[np.float16]) -> tuple[NDArray[np.int8], Floats]:
    """Quantize rows to 8 bit (LLM.int8(), threshold 0, as weights are).

    Args:
        values: [rows, columns], float16, to which bitsandbytes casts any weight first.

    Returns:
        int8 [rows, columns]; the largest magnitude of each row, [rows].
    """
    scale = np.empty(len(values), np.float32)
    if (loop := compiled("quantize_rows")) is not None:
        out = np.empty(values.shape, np.int8)
        loop(values, *values.shape, out, scale)
        return out, scale
    scale[:] = np.abs(values).max(1)
    with np.errstate(all="ignore"):
        # a number divided by a tensor is torch's reciprocal times the number: two roundings
        scaled = values.astype(np.float32) * (_ONE / scale * np.float32(127))[:, None]
    return np.rint(np.nan_to_num(scaled, nan=0.0)).astype(np.int8), scale


@cache
def dynamic_map() -> Floats:
    """Return the 256 values of the signed dynamic type (arXiv 1511.04561) that scales are quantized to, sorted."""
    values = [0.0, 1.0]
    for exponent in range(7):
        steps = 2**exponent + 1
        step = float((_ONE - np.float32(0.1)) / np.float32(steps - 1))
        # torch counts from both ends towards the middle, with one rounding a number: its multiply and add are fused
        up = float(np.float32(0.1)) + step * np.arange(steps // 2)
        down = 1 - step * np.arange(steps - steps // 2 - 1, -1, -1)
        bounds = np.concatenate([up, down]).astype(np.float32)
        means = np.float32(10.0 ** (exponent - 6)) * ((bounds[:-1] + bounds[1:]) / np.float32(2))
        values += means.tolist() + (-means).tolist()
    return np.sort(np.array(values, np.float32))


@cache
def _nearest() -> Bytes:
    """Return the nearest place on the dynamic map for 65,536 steps from -1 to 1: the table that bitsandbytes uses."""
    code = dynamic_map()
    at = np.arange(65536) / 32767.5 - 1
    right = np.searchsorted(code, at).clip(0, 255)
    left = np.maximum(right - 1, 0)
    return np.where(at - code[left] < code[right] - at, left, right).astype(np.uint8)


PARALLEL_FROM = 32768
"""Elements from which torch splits a sum among threads."""


def sum_like_torch(x: Floats, threads: int) -> np.float32:
    """Add up float32 numbers in the order in which torch does (aten/src/ATen/native/cpu/SumKernel.cpp).

    Args:
        x: [n].
        threads: Parts that a long sum is split into.
    """
    if threads == 1 or len(x) < PARALLEL_FROM:
        return _sum_of_part(x)
    parts = np.zeros(threads, np.float32)
    used = min(threads, -(-len(x) // PARALLEL_FROM))
    chunk = -(-len(x) // used)
    for i in range(used):
        parts[i] = _sum_of_part(x[i * chunk : (i + 1) * chunk])
    return _sum_of_part(parts)


def _sum_of_part(x: Floats) -> np.float32:
    rows = len(x) // LANES
    power = max(4, max(rows // 4 - 1, 0).bit_length() // 4)
    if (loop := compiled("sum_in_order")) is not None:
        return np.float32(loop(x, len(x), power, np.empty((4, 4 * LANES), np.float32)))
    vector = _sum_of_rows(x[: rows * LANES].reshape(rows, LANES), power) if rows else np.zeros(LANES, np.float32)
    total = np.float32(0)
    for value in (*x[rows * LANES :], *vector):
        total = np.float32(total + value)
    return total


def _sum_of_rows(x: Floats, power: int) -> Floats:
    """Four independent sums over the rows of [n, lanes], then the rest, then the four together."""
    quads = len(x) // 4
    sums = _cascade(x[: quads * 4].reshape(quads, 4, LANES), power)
    for row in x[quads * 4 :]:
        sums[0] += row
    for i in range(1, 4):
        sums[0] += sums[i]
    return np.asarray(sums[0])


def _cascade(x: Floats, power: int) -> Floats:
    """Add up along the first axis with four levels of partial sums, which keeps rounding errors small."""
    levels = np.zeros((4, *x.shape[1:]), np.float32)
    step, i = 1 << power, 0
    while i + step <= len(x):
        for row in x[i : i + step]:
            levels[0] += row
        i += step
        for level in range(1, 4):
            levels[level] += levels[level - 1]
            levels[level - 1] = 0
            if i & ((step - 1) << level * power):
                break
    for row in x[i:]:
        levels[0] += row
    for level in range(1, 4):
        levels[0] += levels[level]
    return np.asarray(levels[0])
