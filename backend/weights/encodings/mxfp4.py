"""MXFP4: the experts of gpt-oss, 4-bit floating-point numbers with a power of two for each 32 of them (OCP MX, 1.0).

Layout and arithmetic: transformers' `convert_moe_packed_tensors`. Outputs lie before inputs in the blocks, and behind
them in the dense tensor: what is decoded at a time are 32 inputs of an expert with all of its outputs.
"""

from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np

from backend.strict_json import quoted
from backend.weights.encodings.encoding import LONGEST_ROW, Encoded, Encoding, Found, Read, damaged, sizes
from backend.weights.floats import Bytes, from_float32, to_float32
from backend.weights.tensor import Tensor

GROUP = 32
"""Numbers that share a scale."""

EXPERTS = 2
"""Experts whose bytes are kept: threads that read one after the other are seldom further apart."""

_BLOCKS, _SCALES = "_blocks", "_scales"


def words(settings: Mapping[str, Any]) -> str:
    """Say the format."""
    return "MXFP4"


def find(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], dtype: str) -> Found:
    """Find the experts and their scales; see fp8.find().

    Raises:
        SpecError: Scales are missing, are left over, or have another shape.
    """
    encoded = tuple(_experts(t, tensors, dtype) for t in tensors.values() if t.name.endswith(_BLOCKS))
    known = {part.name for one in encoded for part in one.parts}
    for tensor in tensors.values():
        if tensor.name.endswith(_SCALES) and tensor.name not in known:
            raise damaged(tensor, "scales blocks that are not there")
    return Found(encoded, ())


def _experts(blocks: Tensor, tensors: Mapping[str, Tensor], dtype: str) -> "Experts":
    name = blocks.name.removesuffix(_BLOCKS)
    scales = tensors.get(name + _SCALES)
    if scales is None:
        raise damaged(blocks, f"lacks its scales, {quoted(name + _SCALES)}")
    whole = len(blocks.shape) == 4 and blocks.shape[-1] == GROUP // 2 and blocks.elements
    if blocks.dtype != "U8" or not whole or GROUP * blocks.shape[1] > LONGEST_ROW:
        raise damaged(blocks, f"holds {sizes(blocks.shape)} numbers of the type {blocks.dtype}, which is no MXFP4")
    if scales.dtype not in ("U8", "F8_E8M0") or scales.shape != blocks.shape[:-1]:
        raise damaged(scales, f"has {sizes(scales.shape)} scales for blocks of {sizes(blocks.shape)} bytes")
    experts, outputs, groups, _ = blocks.shape
    return Experts(Tensor(name=name, dtype=dtype, shape=(experts, groups * GROUP, outputs)), blocks, scales)


class Experts(Encoded):
    """The experts of a layer.

    Args:
        tensor: What they are once they are decoded, [experts, inputs, outputs].
        blocks: [experts, outputs, groups of inputs, 16].
        scales: [experts, outputs, groups of inputs].
    """

    element = 11  # half a byte, a code, and float32 twice

    def __init__(self, tensor: Tensor, blocks: Tensor, scales: Tensor) -> None:
        self.tensor, self.parts = tensor, (blocks, scales)
        self.row = GROUP * tensor.shape[-1]
        _, self._outputs, self._groups, _ = blocks.shape
        self._bytes = self._outputs * self._groups * GROUP // 2  # of an expert
        self.kept = EXPERTS * self._bytes * 17 // 16
        self._held: dict[int, tuple[Bytes, Bytes]] = {}
        self._lock = Lock()

    def rows(self, read: Read, top: int, bottom: int) -> Bytes:
        """Return groups of inputs, those of all experts counted through, in the type of the tensor."""
        return np.concatenate([self._group(read, *divmod(at, self._groups)) for at in range(top, bottom)])

    def release(self) -> None:
        """Drop the experts that are held."""
        self._held.clear()

    def _group(self, read: Read, expert: int, group: int) -> Bytes:
        blocks, scales = self._expert(read, expert)
        numbers = to_float32(blocks[:, group], "F4")
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            numbers *= to_float32(scales[:, group], "F8_E8M0")[:, None]
        turned = np.ascontiguousarray(numbers.T)
        return from_float32(turned.reshape(-1), self.tensor.dtype)

    def _expert(self, read: Read, expert: int) -> tuple[Bytes, Bytes]:
        """Return an expert's blocks, [outputs, groups, 16], and scales, [outputs, groups]."""
        with self._lock:
            if expert not in self._held:
                if len(self._held) == EXPERTS:
                    del self._held[min(self._held)]
                first, last = expert * self._bytes, (expert + 1) * self._bytes
                blocks, scales = read(self.parts[0], first, last), read(self.parts[1], first // 16, last // 16)
                shape = (self._outputs, self._groups)
                self._held[expert] = blocks.reshape(*shape, GROUP // 2), scales.reshape(shape)
            return self._held[expert]


ENCODING = Encoding(words, find)
