"""The inner loop that takes the time, compiled by numba where it is installed, in NumPy where it is not.

numba is imported when the loop is first needed, and keeps the compiled code on the disk.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = np.float32(1e-38)


def pack_4bit(
    blocks: NDArray[np.float32],
    bounds: NDArray[np.float32],
    order: NDArray[np.uint8],
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32],
) -> None:
    """Quantize whole blocks to 4 bits.

    Args:
        blocks: [blocks, block size], finite.
        bounds: [15], ascending.
        order: [16], the code of each place.
        packed: Filled, [blocks * block size / 2].
        absmax: Filled, [blocks].
    """
    (_compiled() or _pack_numpy)(blocks, bounds, order, packed, absmax)


def _pack_numpy(blocks: Any, bounds: Any, order: Any, packed: Any, absmax: Any) -> None:
    absmax[:] = np.abs(blocks).max(1, initial=0)
    scaled = np.clip(blocks * (np.float32(1) / np.maximum(absmax, _TINY))[:, None], -1, 1).reshape(-1)
    codes = order[np.searchsorted(bounds, scaled)]
    packed[:] = codes[::2] << 4 | codes[1::2]


@cache
def _compiled() -> Any:
    try:
        import numba
    except ImportError:
        return None

    @numba.njit(parallel=True, cache=True, nogil=True)
    def pack(blocks: Any, bounds: Any, order: Any, packed: Any, absmax: Any) -> None:
        size = blocks.shape[1]
        for i in numba.prange(blocks.shape[0]):
            block = blocks[i]
            largest = np.float32(0)
            for j in range(size):
                largest = max(largest, abs(block[j]))
            absmax[i] = largest
            inverse = np.float32(1) / max(largest, _TINY)
            places = np.zeros(size, np.uint8)
            for k in range(15):
                bound = bounds[k]
                for j in range(size):
                    places[j] += np.uint8(min(max(block[j] * inverse, np.float32(-1)), np.float32(1)) > bound)
            for j in range(size // 2):
                packed[i * (size // 2) + j] = order[places[2 * j]] << 4 | order[places[2 * j + 1]]

    return pack
