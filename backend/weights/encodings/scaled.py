"""Scaled matrices: codes of 8 bits or less, and a number for each block of them that they are multiplied by."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backend.weights.encodings.encoding import Encoded, Read, damaged, sizes
from backend.weights.floats import Bytes, Floats, cast, from_float32, to_float32
from backend.weights.tensor import Tensor


@dataclass(eq=False)
class Scaled(Encoded):
    """A matrix, or several of one shape, of scaled codes.

    Attributes:
        tensor: What it is once it is decoded, [..., rows, columns].
        weight: The codes.
        scale: Of each block, [..., rows of blocks, columns of blocks]; of one block without dimensions too.
        block: Rows and columns that share a scale; the last ones may have fewer.
        kind: The type of the codes; nothing where it is what the header says.
        bits: Of a code where they are integers in words of 32 bits, the first in the lowest; 0: they are not.
        zero: Codes that stand for 0, of each block; packed along the rows where the weights are packed along columns.
        said: Holds the shape once more.
        through: The type in which a product is rounded before it is cast to the tensor's.
    """

    tensor: Tensor
    weight: Tensor
    scale: Tensor
    block: tuple[int, int]
    kind: str = ""
    bits: int = 0
    zero: Tensor | None = None
    said: Tensor | None = None
    through: str = "F32"
    parts: tuple[Tensor, ...] = field(init=False)
    row: int = field(init=False)
    element = 11  # a code, the same unpacked, and float32 twice, of which one is narrowed

    def __post_init__(self) -> None:
        self.parts = tuple(part for part in (self.weight, self.scale, self.zero, self.said) if part)
        self.row = self.tensor.shape[-1]

    def rows(self, read: Read, top: int, bottom: int) -> Bytes:
        """Return rows, all matrices counted through, in the type of the tensor.

        Raises:
            SpecError: The shape that is stored is another.
        """
        if top == 0 and self.said:
            self._check_shape(read, self.said)
        values = self._values(read, top, bottom)
        if self.zero:
            self._apply(np.subtract, values, self._zeros(read, self.zero, top, bottom))
        scales = self._of_blocks(read, self.scale, top, bottom)
        kind = "F8_E8M0" if self.scale.dtype == "U8" else self.scale.dtype  # MX scales are saved as bytes too
        self._apply(np.multiply, values, to_float32(scales, kind).reshape(bottom - top, -1))
        return cast(from_float32(values.reshape(-1), self.through), self.through, self.tensor.dtype)

    def release(self) -> None:
        """Nothing is kept."""

    def _values(self, read: Read, top: int, bottom: int) -> Floats:
        """Return codes as numbers, those of symmetric grids with 0 in the middle."""
        width = self.weight.shape[-1]
        raw = read(self.weight, top * width, bottom * width)
        if not self.bits:
            kind = self.kind or self.weight.dtype
            numbers = raw.view(np.int8).astype(np.float32) if kind == "I8" else to_float32(raw, kind)
            return numbers.reshape(-1, self.row)
        raw, count = raw.reshape(bottom - top, 4 * width), 8 // self.bits
        codes = np.empty((*raw.shape, count), np.uint8)
        for place in range(count):
            codes[..., place] = raw >> (place * self.bits) & ((1 << self.bits) - 1)
        values = codes.reshape(bottom - top, -1)[:, : self.row].astype(np.float32)
        if not self.zero:
            values -= 1 << (self.bits - 1)
        return values

    def _zeros(self, read: Read, zero: Tensor, top: int, bottom: int) -> Floats:
        """Return what is subtracted from the codes of each row, [rows, columns of blocks]."""
        if not self.bits:
            return self._of_blocks(read, zero, top, bottom).view(np.int8).astype(np.float32).reshape(bottom - top, -1)
        each, width = 32 // self.bits, zero.shape[-1]
        first = top // each
        words = read(zero, first * width, -(-bottom // each) * width).view(np.uint32).reshape(-1, width)
        rows = np.arange(top, bottom)
        shifts = (rows % each * self.bits).astype(np.uint32)
        codes = words[rows // each - first] >> shifts[:, None] & np.uint32((1 << self.bits) - 1)
        return codes.astype(np.float32)

    def _of_blocks(self, read: Read, tensor: Tensor, top: int, bottom: int) -> Bytes:
        """Return what belongs to the blocks of each row: bytes of [rows, columns of blocks]."""
        height, lines = self.tensor.shape[-2], -(-self.tensor.shape[-2] // self.block[0])
        across = -(-self.row // self.block[1])
        rows = np.arange(top, bottom)
        line = rows // height * lines + rows % height // self.block[0]
        if tensor.elements == 1:
            line[:] = 0
        first, last = int(line[0]), int(line[-1]) + 1
        raw = read(tensor, first * across, last * across).reshape(last - first, -1)
        found: Bytes = raw[line - first].reshape(-1)
        return found

    def _apply(self, work: Any, values: Floats, blocks: Floats) -> None:
        """Do arithmetic on values in place, with what belongs to their blocks."""
        width = self.block[1]
        whole = self.row // width
        inside = values[:, : whole * width].reshape(len(values), whole, width)  # a view: only an axis is split
        work(inside, blocks[:, :whole, None], out=inside)
        if whole * width < self.row:
            rest = values[:, whole * width :]
            work(rest, blocks[:, whole:], out=rest)

    def _check_shape(self, read: Read, said: Tensor) -> None:
        """Refuse a matrix whose stored shape is another than that of its codes and scales."""
        kind = np.int32 if said.dtype == "I32" else np.int64
        shape = tuple(int(size) for size in read(said, 0, said.elements).view(kind))
        if shape != self.tensor.shape:
            raise damaged(said, f"says {sizes(shape)}, and what lies there makes {sizes(self.tensor.shape)}")
