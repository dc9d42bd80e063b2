"""Views: a tensor as a format sees it, and its elements, read piece by piece by a few threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from backend.errors import SpecError
from backend.weights.checkpoint import Weights
from backend.weights.floats import Bytes, cast, is_finite, transposed
from backend.weights.tensor import Tensor

PIECE = 1 << 20  # elements that a thread has in hand: they fit its cache; a multiple of every block

THREADS = 8
"""Threads at most: more would wait for memory, and each takes some megabytes."""


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
        step = max(PIECE // multiple, 1) * multiple
        read = self._whole() if self.turned else lambda first, last: self.weights.read(self.tensor, first, last)

        def piece(first: int) -> None:
            raw = read(first, min(first + step, self.elements))
            if not is_finite(raw, self.tensor.dtype):
                raise SpecError(
                    f"'{self.name}' holds numbers that are not finite: the model is damaged, choose another."
                )
            work(first, cast(raw, self.tensor.dtype, self.dtype))
            self.tell(len(raw))

        for _ in _pool().map(piece, range(0, self.elements, step)):
            pass

    def _whole(self) -> Callable[[int, int], Bytes]:
        """Transpose the whole tensor; models with such are small: their largest layer has some tens of megabytes."""
        turned = transposed(self.weights.read(self.tensor, 0, self.elements), self.tensor.shape)
        width = len(turned) // max(self.elements, 1)
        return lambda first, last: turned[first * width : last * width]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), "weights")


def threads() -> int:
    """Return the number of threads that read, compute and write."""
    return min(len(os.sched_getaffinity(0)), THREADS)
