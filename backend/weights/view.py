"""Views: a tensor as a format sees it, and its elements, read piece by piece by a few threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from backend.errors import SpecError
from backend.weights.checkpoint import Weights
from backend.weights.floats import Bytes, cast, is_finite, transposed
from backend.weights.tensor import Tensor

PIECE = 1 << 20  # elements that a thread has in hand: they fit its cache; a multiple of every block

THREADS = 8
"""Threads at most: more would wait for memory, and each takes some megabytes."""


class Span(NamedTuple):
    """Outputs of a tensor that are a matrix of their own, those of all experts in it counted through.

    Attributes:
        first: The first of them.
        length: How many.
        step: From one to the next.
    """

    first: int
    length: int
    step: int = 1


@dataclass(frozen=True)
class View:
    """A tensor as a format sees it.

    Attributes:
        tensor: As it lies in the checkpoint.
        dtype: The type that its elements are cast to, as safetensors names it.
        turned: Whether it is transposed first.
    """

    tensor: Tensor
    dtype: str
    turned: bool

    @property
    def name(self) -> str:
        """Its name."""
        return self.tensor.name

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return self.tensor.elements

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; of a weight [out_features, in_features]."""
        return self.tensor.shape[::-1] if self.turned else self.tensor.shape


@dataclass(frozen=True)
class Source(View):
    """A view whose elements can be read.

    Attributes:
        weights: What it is read from.
        tell: Receives the bytes of each piece that is done; several threads do.
    """

    weights: Weights
    tell: Callable[[int], None]

    def each(self, work: Callable[[int, Bytes], None], multiple: int = 1) -> None:
        """Do `work` on the first element and the bytes of each piece, in no order, in several threads at once.

        Args:
            work: Writes what the piece becomes.
            multiple: Every piece but the last has a multiple of so many elements.

        Raises:
            SpecError: The tensor holds numbers that are not finite.
        """
        step = in_hand(multiple)
        read = self._whole() if self.turned else lambda first, last: self.weights.read(self.tensor, first, last)

        def piece(first: int) -> None:
            raw = read(first, min(first + step, self.elements))
            work(first, self._taken(raw))
            self.tell(len(raw))

        for _ in _pool().map(piece, range(0, self.elements, step)):
            pass

    def each_rows(
        self, matrices: Sequence[Span], work: Callable[[int, int, Bytes], None], multiple: int = 1, turned: bool = False
    ) -> None:
        """Do `work` on pieces of matrices: the number of one, the first of its rows, and the bytes of some.

        Args:
            matrices: In the order of the tensor.
            work: Writes what the piece becomes.
            multiple: Every piece but the last of a matrix has a multiple of so many rows.
            turned: Whether inputs lie before outputs: all of an expert is in memory then, and no more.

        Raises:
            SpecError: The tensor holds numbers that are not finite.
        """
        inputs, outputs = self.tensor.shape[-2:] if turned else self.tensor.shape[:-3:-1]
        step = in_hand(multiple * inputs) // inputs
        for expert, numbers in groupby(range(len(matrices)), lambda number: turned * matrices[number].first // outputs):
            whole = self.expert(expert) if turned else None

            def piece(job: tuple[int, int], whole: Bytes | None = whole, expert: int = expert) -> None:
                number, top = job
                first, length, by = matrices[number]
                last = first + (min(top + step, length) - 1) * by + 1
                if whole is None:
                    raw = self.weights.read(self.tensor, (first + top * by) * inputs, last * inputs)
                    raw = raw.reshape(last - first - top * by, -1)[::by]
                else:
                    start = expert * outputs
                    raw = whole[:, first + top * by - start : last - start : by].transpose(1, 0, 2)
                work(number, top, self._taken(np.ascontiguousarray(raw).reshape(-1)))
                self.tell(raw.size)

            jobs = [(number, top) for number in numbers for top in range(0, matrices[number].length, step)]
            for _ in _pool().map(piece, jobs):
                pass

    def _taken(self, raw: Bytes) -> Bytes:
        """Return what was read in the type that it is cast to, if it is finite."""
        if not is_finite(raw, self.tensor.dtype):
            raise SpecError(f"'{self.name}' holds numbers that are not finite: the model is damaged, choose another.")
        return cast(raw, self.tensor.dtype, self.dtype)

    def expert(self, number: int) -> Bytes:
        """Return the bytes of one of the matrices of a tensor, [rows, columns, bytes of an element]."""
        _, rows, columns = self.tensor.shape
        size, width = rows * columns, self.tensor.bytes // max(self.elements, 1)
        whole = np.empty(size * width, np.uint8)

        def piece(at: int) -> None:
            last = min(at + PIECE, size)
            whole[at * width : last * width] = self.weights.read(self.tensor, number * size + at, number * size + last)

        for _ in _pool().map(piece, range(0, size, PIECE)):
            pass
        return whole.reshape(rows, columns, width)

    def _whole(self) -> Callable[[int, int], Bytes]:
        """Transpose the whole tensor; models with such are small: their largest layer has some tens of megabytes."""
        turned = transposed(self.weights.read(self.tensor, 0, self.elements), self.tensor.shape)
        width = len(turned) // max(self.elements, 1)
        return lambda first, last: turned[first * width : last * width]


def in_hand(multiple: int) -> int:
    """Return the elements of a piece where these are a multiple of some."""
    return max(PIECE // multiple, 1) * multiple


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), "weights")


def threads() -> int:
    """Return the number of threads that read, compute and write."""
    return min(len(os.sched_getaffinity(0)), THREADS)
