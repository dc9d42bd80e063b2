"""Scaled matrices: codes of 8 bits or less, and a number for each block of them that they are multiplied by."""

import math
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
        bits: Of a code where they are integers in words of 32 bits, the first in the lowest, from word to word; 0: they
            are not.
        zero: Codes that stand for 0, of each block; packed along the rows where the weights are packed along columns.
        said: Holds the shape once more.
        over: A number that all scales are divided by.
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
    over: Tensor | None = None
    through: str = "F32"
    parts: tuple[Tensor, ...] = field(init=False)
    row: int = field(init=False)
    element = 11  # a code, the same unpacked, and float32 twice, of which one is narrowed

    def __post_init__(self) -> None:
        self.parts = tuple(part for part in (self.weight, self.scale, self.zero, self.said, self.over) if part)
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
        with np.errstate(all="ignore"):  # what is not finite is refused where it is used
            self._apply(np.multiply, values, self._scales(read, top, bottom))
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
        codes = self._unpacked(raw.reshape(bottom - top, 4 * width))
        values = codes[:, : self.row].astype(np.float32)
        if not self.zero:
            values -= 1 << (self.bits - 1)
        return values

    def _unpacked(self, raw: Bytes) -> Bytes:
        """Return the codes in rows of bytes, and what fills up their last word."""
        count, span = 8 // math.gcd(self.bits, 8), self.bits // math.gcd(self.bits, 8)  # so many codes in whole bytes
        if short := -raw.shape[1] % span:
            raw = np.pad(raw, ((0, 0), (0, short)))
        spans = raw.reshape(len(raw), -1, span)
        codes = np.empty((*spans.shape[:2], count), np.uint8)
        for place in range(count):
            byte, shift = divmod(place * self.bits, 8)
            code = spans[..., byte] >> shift
            if shift + self.bits > 8:
                code |= spans[..., byte + 1] << (8 - shift)
            codes[..., place] = code & ((1 << self.bits) - 1)
        return codes.reshape(len(raw), -1)

    def _scales(self, read: Read, top: int, bottom: int) -> Floats:
        """Return what the codes of each row are multiplied by, [rows, columns of blocks]."""
        kind = "F8_E8M0" if self.scale.dtype == "U8" else self.scale.dtype  # MX scales are saved as bytes too
        scales = to_float32(self._of_blocks(read, self.scale, top, bottom), kind).reshape(bottom - top, -1)
        return scales / to_float32(read(self.over, 0, 1), self.over.dtype) if self.over else scales

    def _zeros(self, read: Read, zero: Tensor, top: int, bottom: int) -> Floats:
        """Return what is subtracted from the codes of each row, [rows, columns of blocks]."""
        if not self.bits:
            return self._of_blocks(read, zero, top, bottom).view(np.int8).astype(np.float32).reshape(bottom - top, -1)
        width, starts = zero.shape[-1], np.arange(top, bottom) * self.bits
        first, last = top * self.bits // 32, -(-bottom * self.bits // 32)
        words = read(zero, first * width, last * width).view(np.uint32).reshape(-1, width)
        word = starts // 32 - first
        both = words[np.minimum(word + 1, len(words) - 1)].astype(np.uint64) << 32 | words[word]
        codes = both >> (starts % 32).astype(np.uint64)[:, None] & np.uint64((1 << self.bits) - 1)
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
