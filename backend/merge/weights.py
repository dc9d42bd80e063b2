"""Weights with adapters merged in, computed where they are read: only the matrices of the current tensors are held."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from backend.errors import SpecError
from backend.merge.adapter import WEIGHTS, Adapter, Lora
from backend.merge.plan import Change, Made
from backend.models.facts import BITS, Tensor
from backend.strict_json import quoted
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.floats import FLOATS, Bytes, Floats, cast, is_finite, to_float32
from backend.weights.header import Header
from backend.weights.low_rank import Doubles, add, exact, nearest, product

PIECE = 1 << 20  # elements that a pass over a tensor has in hand


class AdapterFile:
    """The file of an adapter, as a Checkpoint opens it."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.name = folder.name
        stat = (folder / WEIGHTS).stat()
        self.identity = repr((stat.st_size, stat.st_mtime_ns))
        self.headers = {WEIGHTS: header}
        self._path = folder / WEIGHTS

    def open(self, file: str) -> int:
        """Give a descriptor of the file."""
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

    def piece(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read elements of a tensor."""
        raw = self.weights.read(tensor, first, last)
        if not is_finite(raw, tensor.dtype):
            raise SpecError(
                f"{quoted(tensor.name)} of the adapter {quoted(self.adapter.name)} holds numbers that are not finite:"
                " its training went wrong, choose another adapter."
            )
        return raw


class _Product(NamedTuple):
    """All that adapters add to a tensor: left @ right, and what DoRA multiplies the tensor's own rows or columns by."""

    left: Floats  # [rows, ranks of all adapters]
    right: Floats  # [ranks of all adapters, columns]
    rows: Doubles | None  # [rows, 1], what is added to a factor of 1
    columns: Doubles | None  # [1, columns]


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
        self._base, self._adapters, self._dtype = base, adapters, dtype
        self._made = {one.tensor.name: one for one in made}
        self._products: dict[str, _Product] = {}
        self._lock = Lock()
        self.tensors: Sequence[Tensor] = tuple(
            one.tensor.model_copy(update={"dtype": dtype}) if one.tensor.dtype in FLOATS else one.tensor for one in made
        )

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
        parts = self._product(made)
        more = product(parts.left[top:bottom], parts.right)
        if parts.rows is None and parts.columns is None:
            merged = add(raw, dtype, more, self._dtype)
        else:
            factor = 1.0 + (0.0 if parts.rows is None else parts.rows[top:bottom])
            factor = factor + (0.0 if parts.columns is None else parts.columns)
            merged = nearest(exact(raw, dtype).reshape(more.shape) * factor + more, self._dtype)
        start = (first - top * columns) * width
        return self._checked(made, merged[start : start + (last - first) * width])

    def release(self, tensor: Tensor) -> None:
        """Say that a tensor will not be read again."""
        self._products.pop(tensor.name, None)
        for source in self._made[tensor.name].frees:
            self._base.release(source)

    def _before(self, made: Made, first: int, last: int) -> tuple[Bytes, str]:
        """Give elements before anything is added: the base model's, or what takes their place, and their type."""
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

    def _product(self, made: Made) -> _Product:
        """Give the matrices of a tensor; whoever needs them first prepares them."""
        with self._lock:
            name = made.tensor.name
            if name not in self._products:
                self._products[name] = self._prepare(made)
            return self._products[name]

    def _prepare(self, made: Made) -> _Product:
        lefts, rights = [], []
        gains: dict[bool, Any] = {}
        for change in made.changes:
            left, right = self._thin(change.lora, made, change)
            over = made.turned or change.lora.embedding
            scale: Any = change.lora.scale * change.weight
            if change.lora.magnitude is not None:
                lengths = self._lengths(made, left, right, change.lora.scale, over)
                magnitude = self._adapters[change.adapter].matrix(change.lora.magnitude).reshape(-1)
                factor = magnitude.astype(np.float64) / lengths
                scale = scale * factor
                gains[over] = gains.get(over, 0.0) + change.weight * (factor - 1)
            scaled = np.asarray(scale).reshape(-1)
            lefts.append(left if over else _scaled(left, scaled[:, None]))
            rights.append(_scaled(right, scaled[None, :]) if over else right)
        rows, columns = gains.get(False), gains.get(True)
        return _Product(
            np.ascontiguousarray(np.hstack(lefts)),
            np.ascontiguousarray(np.vstack(rights)),
            None if rows is None else rows[:, None],
            None if columns is None else columns[None, :],
        )

    def _thin(self, lora: Lora, made: Made, change: Change) -> tuple[Floats, Floats]:
        opened = self._adapters[change.adapter]
        a, b = opened.matrix(lora.a), opened.matrix(lora.b)
        return (a.T, b.T) if made.turned or lora.embedding else (b, a)

    def _lengths(self, made: Made, left: Floats, right: Floats, scale: float, over: bool) -> Doubles:
        """Give the length of each output's weights with the product added: of rows, or of columns where `over`."""
        rows, columns = len(left), right.shape[1]
        step, squares = max(PIECE // columns, 1), []
        for top in range(0, rows, step):
            bottom = min(top + step, rows)
            raw, dtype = self._before(made, top * columns, bottom * columns)
            more = product(np.ascontiguousarray(left[top:bottom]), np.ascontiguousarray(right)).astype(np.float64)
            whole = exact(raw, dtype).reshape(more.shape) + scale * more
            squares.append((whole**2).sum(0 if over else 1))
        total: Doubles = np.sqrt(np.sum(squares, 0) if over else np.concatenate(squares))
        return total


def _scaled(matrix: Floats, scale: Any) -> Floats:
    scaled: Floats = (matrix.astype(np.float64) * scale).astype(np.float32)
    return scaled
