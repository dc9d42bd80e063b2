"""Packing small integers into int32 as AutoGPTQ and AutoAWQ do."""

import numpy as np
from numpy.typing import NDArray

Small = NDArray[np.uint8]
Words = NDArray[np.int32]

WORD = 32  # bits


def pack_rows(values: Small, bits: int) -> Words:
    """Pack down the columns as one stream of bits, the lowest first: AutoGPTQ's way, for 3 bits too.

    Args:
        values: Below 2**bits, [n, columns]; n is a multiple of 32.
        bits: Of each.

    Returns:
        [n * bits / 32, columns].
    """
    n, columns = values.shape
    lanes = values.reshape(n // WORD, WORD, columns).astype(np.uint32)
    words = np.zeros((n // WORD, bits, columns), np.uint32)
    for k in range(WORD):
        word, shift = divmod(k * bits, WORD)
        words[:, word] |= lanes[:, k] << np.uint32(shift)
        if shift + bits > WORD:
            words[:, word + 1] |= lanes[:, k] >> np.uint32(WORD - shift)
    return words.reshape(-1, columns).view(np.int32)


def unpack_rows(words: Words, bits: int) -> Small:
    """Return what pack_rows() was given."""
    rows, columns = words.shape
    packed = words.view(np.uint32).reshape(rows // bits, bits, columns)
    lanes = np.empty((rows // bits, WORD, columns), np.uint8)
    for k in range(WORD):
        word, shift = divmod(k * bits, WORD)
        value = packed[:, word] >> np.uint32(shift)
        if shift + bits > WORD:
            value = value | packed[:, word + 1] << np.uint32(WORD - shift)
        lanes[:, k] = value & np.uint32(2**bits - 1)
    return lanes.reshape(-1, columns)


INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbors AutoAWQ's GEMM kernel has in each half byte of a word, the lowest first."""


def pack_interleaved(values: Small) -> Words:
    """Pack 4-bit integers along the rows, eight a word: AutoAWQ's way.

    Args:
        values: Below 16, [n, columns]; columns is a multiple of 8.

    Returns:
        [n, columns / 8].
    """
    eights = values.reshape(len(values), -1, 8).astype(np.uint32)
    words = np.zeros(eights.shape[:2], np.uint32)
    for place, neighbor in enumerate(INTERLEAVED):
        words |= eights[:, :, neighbor] << np.uint32(4 * place)
    return words.view(np.int32)


def unpack_interleaved(words: Words) -> Small:
    """Return what pack_interleaved() was given."""
    packed = words.view(np.uint32)
    eights = np.empty((*words.shape, 8), np.uint8)
    for place, neighbor in enumerate(INTERLEAVED):
        eights[:, :, neighbor] = packed >> np.uint32(4 * place) & np.uint32(15)
    return eights.reshape(len(words), -1)
