"""Weights with adapters merged in, computed where they are read: only the matrices of the current tensors are held."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from backend.errors import SpecError
from backend.merge.adapter import WEIGHTS, Adapter, Lora
from backend.merge.plan import Made
from backend.strict_json import quoted
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.floats import FLOATS, Bytes, Floats, cast, is_finite, to_float32
from backend.weights.header import Header
from backend.weights.low_rank import Doubles, LowRank, add, exact, nearest, total
from backend.weights.tensor import BITS, Tensor
from backend.weights.view import PIECE


class AdapterFile:
    """The file of an adapter, as a Checkpoint opens it."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.name = folder.name
        stat = (folder / WEIGHTS).stat()
        self.identity = repr((stat.st_size, stat.st_mtime_ns))
        self.headers = {WEIGHTS: header}
        self._path = folder / WEIGHTS

    def open(self, file: str) -> int:
        """Return a descriptor of the file."""
        return os.open(self._path, os.O_RDONLY)

    def release(self, file: str) -> None:
        """Leave the file where it is."""


class Opened(NamedTuple):
    """An adapter with its tensors at hand."""

    adapter: Adapter
    weights: Checkpoint

    def matrix(self, tensor: Tensor) -> Floats:
        """Read a tensor whole: the thin matrices are.

        Raises:
            SpecError: A number is not finite.
        """
        values = to_float32(self.piece(tensor, 0, tensor.elements), tensor.dtype)
        return values.reshape(tensor.shape)

    def factors(self, lora: Lora) -> tuple[Doubles, Doubles]:
        """Read the matrices of a layer, or of one expert among those that they hold: [rank, in], [out, rank]."""
        if lora.experts == 1:
            return self.matrix(lora.a).astype(np.float64), self.matrix(lora.b).astype(np.float64)
        expert, first, last = lora.part
        rank = lora.rank
        inputs = lora.a.shape[1]
        columns = lora.b.shape[1]
        a = self.piece(lora.a, expert * rank * inputs, (expert + 1) * rank * inputs)
        b = to_float32(self.piece(lora.b, first * columns, last * columns), lora.b.dtype)
        mine = b.reshape(last - first, rank, lora.experts)[:, :, expert]
        return exact(a, lora.a.dtype).reshape(rank, inputs), mine.astype(np.float64)

    def piece(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read elements of a tensor."""
        raw = self.weights.read(tensor, first, last)
        if not is_finite(raw, tensor.dtype):
            raise SpecError(
                f"{quoted(tensor.name)} of the adapter {quoted(self.adapter.name)} holds numbers that are not finite:"
                " its training went wrong, choose another adapter."
            )
        return raw


class MergedWeights:
    """The tensors of a base model with adapters merged in, in the type of the result.

    Args:
        base: As it lies there, or as it was trained on.
        made: What becomes of which tensor.
        adapters: In the order in which `made` counts them.
        config: config.json of the result.
        dtype: The type of the result, as safetensors names it.
    """

    def __init__(
        self, base: Weights, made: Sequence[Made], adapters: Sequence[Opened], config: dict[str, Any], dtype: str
    ) -> None:
        self.name, self.config = base.name, config
        self.identity = repr((base.identity, [opened.weights.identity for opened in adapters], made, dtype))
        self._base = base
        self._adapters = adapters
        self._dtype = dtype
        self._made = {one.tensor.name: one for one in made}
        self._products: dict[str, LowRank] = {}
        self._lock = Lock()
        self.tensors: Sequence[Tensor] = tuple(one.typed(dtype) for one in made)

    def read(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read the elements from `first` to before `last` of a merged tensor, as bytes.

        Raises:
            SpecError: A number is not finite, or too large for the type.
        """
        made = self._made[tensor.name]
        if not made.changes:
            raw, dtype = self._before(made, first, last)
            result = nearest(raw.view(np.float64), self._dtype) if dtype == "F64" else cast(raw, dtype, self._dtype)
            return self._checked(made, result)
        columns, width = tensor.shape[1], BITS[self._dtype] // 8
        top, bottom = first // columns, -(-last // columns)
        raw, dtype = self._before(made, top * columns, bottom * columns)
        merged = add(raw, dtype, self._added(made).rows(top, bottom), self._dtype)
        start = (first - top * columns) * width
        return self._checked(made, merged[start : start + (last - first) * width])

    def release(self, tensor: Tensor) -> None:
        """Say that a tensor will not be read again."""
        self._products.pop(tensor.name, None)
        for source in self._made[tensor.name].frees:
            self._base.release(source)

    def _before(self, made: Made, first: int, last: int) -> tuple[Bytes, str]:
        """Return elements before anything is added, rows of tokens that were trained among them, and their type."""
        raw, dtype = self._saved(made, first, last)
        if not made.tokens:
            return raw, dtype
        values, columns = exact(raw, dtype).copy(), made.tensor.shape[1]
        for adapter, rows, weight in made.tokens:
            order = np.argsort(rows.tokens, kind="stable")
            numbers = np.array(rows.tokens)[order]
            for at in order[slice(*np.searchsorted(numbers, (first // columns, -(-last // columns))))]:
                start = rows.tokens[at] * columns
                low, high = max(start, first), min(start + columns, last)
                moved = int(at) * columns - start
                trained = self._adapters[adapter].piece(rows.tensor, low + moved, high + moved)
                row = values[low - first : high - first]
                row[:] = (1 - weight) * row + weight * exact(trained, rows.tensor.dtype)
        return values.view(np.uint8), "F64"

    def _saved(self, made: Made, first: int, last: int) -> tuple[Bytes, str]:
        """Return elements of the base model, or what takes their place, and their type."""
        if len(made.saves) == 1 and made.saves[0].weight == 1:
            save = made.saves[0]
            return self._adapters[save.adapter].piece(save.tensor, first, last), save.tensor.dtype
        raw = self._base.read(made.source, first, last)
        if not made.saves:
            return raw, made.source.dtype
        total = exact(raw, made.source.dtype) * (1 - sum(save.weight for save in made.saves))
        for save in made.saves:
            total += save.weight * exact(
                self._adapters[save.adapter].piece(save.tensor, first, last), save.tensor.dtype
            )
        return total.view(np.uint8), "F64"

    def _checked(self, made: Made, raw: Bytes) -> Bytes:
        if made.tensor.dtype in FLOATS and not is_finite(raw, self._dtype):
            raise SpecError(
                f"{quoted(made.tensor.name)} holds numbers that are not finite in {self._dtype}: choose dtype bfloat16,"
                " or another adapter if that does not help."
            )
        return raw

    def _added(self, made: Made) -> LowRank:
        """Return what is added to a tensor; whoever needs it first prepares it."""
        with self._lock:
            name = made.tensor.name
            if name not in self._products:
                self._products[name] = self._prepare(made)
            return self._products[name]

    def _prepare(self, made: Made) -> LowRank:
        rows, columns = made.tensor.shape
        lefts, rights = [], []
        gains = {False: np.zeros(rows), True: np.zeros(columns)}  # by whether outputs are columns
        for change in made.changes:
            over = made.turned or change.lora.embedding
            opened, lora = self._adapters[change.adapter], change.lora
            a, b = opened.factors(lora)
            scale: Any = lora.scale
            if lora.magnitude is not None:
                lengths = self._lengths(made, _thin(a, b * lora.scale, over), over)
                factor = opened.matrix(lora.magnitude).reshape(-1) / lengths
                gains[over] += change.weight * (factor - 1)
                scale = scale * factor[:, None]
            left, right = _thin(a, b * (change.weight * scale), over)
            lefts.append(left)
            rights.append(right)
        left, right = np.ascontiguousarray(np.hstack(lefts)), np.ascontiguousarray(np.vstack(rights))
        return LowRank(left, right, gains[False], gains[True])

    def _lengths(self, made: Made, thin: tuple[Doubles, Doubles], over: bool) -> Doubles:
        """Return the length of each output's weights with the product added: of rows, or of columns where `over`."""
        left, right = (np.ascontiguousarray(matrix) for matrix in thin)
        rows, columns = len(left), right.shape[1]
        more = LowRank(left, right, np.zeros(rows), np.zeros(columns))
        step, squares = max(PIECE // columns, 1), []
        for top in range(0, rows, step):
            bottom = min(top + step, rows)
            raw, dtype = self._before(made, top * columns, bottom * columns)
            squares.append((total(raw, dtype, more.rows(top, bottom)) ** 2).sum(0 if over else 1))
        lengths: Doubles = np.sqrt(np.sum(squares, 0) if over else np.concatenate(squares))
        return lengths


def _thin(a: Doubles, b: Doubles, over: bool) -> tuple[Doubles, Doubles]:
    """Return the factors of what is added, as the weights lie."""
    return (a.T, b.T) if over else (b, a)
