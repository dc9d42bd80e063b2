"""Shards of a calibrated model: where each tensor goes is known before, and what is written can be read again."""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.models.rewriting import config_json
from backend.progress import Report
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.layouts.layout import Grid
from backend.weights.anatomy import block_of
from backend.weights.checkpoint import Weights
from backend.weights.floats import FLOATS, Bytes, from_float32, to_float32
from backend.weights.output import Output
from backend.weights.tensor import Tensor
from backend.weights.view import Source, View
from backend.weights.writer import INDEX, Slot, Writer, index

_REFINED = "refined: "
"""Begins the name of the mark of a result whose scales are trained; what was gained follows."""

_NUMPY = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32,
          "BF16": np.uint16, "F8_E4M3": np.uint8}  # fmt: skip

Numbers = NDArray[np.float32]


class Rounded(NamedTuple):
    """A block as it is written.

    Attributes:
        state: Numbers of what is not quantized, by the tensors' names; what is missing is as it was.
        grids: What the linear layers were rounded to, by the names of their weights.
        scales: Of the cache of keys and values, [1], by their names.
    """

    state: dict[str, Numbers]
    grids: dict[str, Grid]
    scales: dict[str, Numbers]

    def weights(self) -> Iterator[tuple[str, Numbers]]:
        """Yield the names of what is written, and the numbers that it stands for."""
        yield from self.state.items()
        yield from ((name, grid.weight()) for name, grid in self.grids.items())


class Shards:
    """The files of a model that is written block by block.

    Args:
        weights: Of the model that it is made from.
        output: Where they go; what an earlier run of the same plan finished there is kept.
        options: What becomes of the tensors.
        calibration: Differs where what calibration reads does.
    """

    def __init__(self, weights: Weights, output: Output, options: CalibratedOptions, calibration: str) -> None:
        self._weights = weights
        self._output = output
        self._options = options
        self.packing = options.form(weights.tensors, weights.config)
        self._plan = options.plan(weights.tensors, weights.config)
        self._views = {view.name: view for part in self._plan.parts for view, _ in part.work}
        self._shards = {name: shard for shard in self._plan.shards for name in shard.names}
        self._left = {shard.file: set(shard.names) for shard in self._plan.shards}
        self._writers: dict[str, Writer] = {}
        description = repr((weights.identity, self._plan.files, options, calibration))
        output.plan(hashlib.sha256(description.encode()).hexdigest())

    def copy(self, outside: Iterable[Tensor], report: Report) -> None:
        """Write what lies in no block as it is, in the model's type.

        Args:
            outside: The tensors.
            report: Receives what is doubtful.
        """
        views = [self._views[tensor.name] for tensor in outside]
        if not self._is_there(views):
            for view in views:
                self._copy(view)
            self._mark(views)
        self._plan.warn(report)
        self._close_full(views)
        for view in views:
            self._weights.release(view.tensor)

    def restore(self, tensors: Collection[Tensor]) -> Rounded | None:
        """Return a block as an earlier run wrote it; None where none did, or where its bytes have changed.

        Args:
            tensors: Of the block.
        """
        views = [self._views[tensor.name] for tensor in tensors]
        if not self._is_there(views):
            return None
        self._close_full(views)
        return self.read(tensors)

    def read(self, tensors: Iterable[Tensor]) -> Rounded:
        """Return a block as it lies in the files.

        Args:
            tensors: Of the block.
        """
        found = Rounded({}, {}, {})
        for view in (self._views[tensor.name] for tensor in tensors if tensor.dtype in FLOATS):
            if self.packing.skips(view.tensor):
                [slot] = self._slots(view)
                found.state[view.name] = to_float32(self._read(slot), view.dtype).reshape(view.shape)
            else:
                found.grids.update(self._grids(view))
                for slot in self.packing.beside(view.name):
                    found.scales[slot.name] = to_float32(self._read(slot), slot.dtype)
        return found

    def write(self, tensors: Iterable[Tensor], block: Rounded) -> None:
        """Write a block.

        Args:
            tensors: Of the block.
            block: What becomes of them.
        """
        views = [self._views[tensor.name] for tensor in tensors]
        self._write(views, block)
        self._mark(views)
        self._close_full(views)

    def rewrite(self, blocks: Iterable[tuple[Collection[Tensor], Rounded]], words: str) -> None:
        """Write blocks over what the files hold; those that a run has begun and not ended are calibrated again.

        Args:
            blocks: Their tensors, and what becomes of them.
            words: Say what is gained.
        """
        for tensors, block in blocks:
            self._write([self._views[tensor.name] for tensor in tensors], block)
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._output.mark(_REFINED + words, self._digest(self._views.values()))

    def refined(self) -> str | None:
        """Return what rewrite() was told to have gained; None where it did not end, or bytes have changed since."""
        marks = {part: digest for part, digest in self._output.marks.items() if part.startswith(_REFINED)}
        with suppress(FileNotFoundError):
            found = self._digest(self._views.values()) if marks else ""
            return next((part.removeprefix(_REFINED) for part, digest in marks.items() if digest == found), None)
        return None

    def _write(self, views: Iterable[View], block: Rounded) -> None:
        packing = self.packing
        for view in views:
            if not packing.skips(view.tensor):
                for matrix in packing.matrices.of(view.tensor):
                    for last, values in packing.layout.pack(block.grids[matrix.name], packing.scheme).items():
                        slot = matrix.name.removesuffix("weight") + last
                        self._writer(slot).write(slot, values)
                for scale in packing.beside(view.name):
                    self._writer(scale.name).write(scale.name, from_float32(block.scales[scale.name], scale.dtype))
            elif view.name in block.state:
                raw = from_float32(np.ascontiguousarray(block.state[view.name]), view.dtype)
                self._writer(view.name).write(view.name, raw)
            else:
                self._copy(view)

    def close(self) -> None:
        """Write the index, where there are several files, and config.json."""
        self._output.settle()
        content = index(self._plan.shards, self._plan.parameters, sum(self._output.finished.values()))
        if content:
            (self._output.folder / INDEX).write_bytes(content)
        tensors, config = self._weights.tensors, self._weights.config
        changes = self._options.config(tensors, config)
        (self._output.folder / "config.json").write_bytes(config_json(config, tensors, changes))

    def _copy(self, view: View) -> None:
        source = Source(view.tensor, view.dtype, view.turned, self._weights, lambda n: None)
        self._plan.plain.write(source, self._writer(view.name))

    def _grids(self, view: View) -> Iterator[tuple[str, Grid]]:
        layout, scheme = self.packing.layout, self.packing.scheme
        for matrix in self.packing.matrices.of(view.tensor):
            start = matrix.name.removesuffix("weight")
            packed = {
                slot.name.removeprefix(start): self._read(slot).view(_NUMPY[slot.dtype]).reshape(slot.shape)
                for slot in layout.slots(matrix, scheme)
            }
            yield matrix.name, layout.unpack(packed, scheme)

    def _slots(self, view: View) -> list[Slot]:
        return (self._plan.plain if self.packing.skips(view.tensor) else self.packing).slots(view)

    def _writer(self, slot: str) -> Writer:
        shard = self._shards[slot]
        if shard.file not in self._writers:
            self._writers[shard.file] = Writer(self._output, shard, more=True)
        return self._writers[shard.file]

    def _read(self, slot: Slot) -> Bytes:
        shard = self._shards[slot.name]
        place = shard.place(slot.name)
        assert place is not None
        return np.fromfile(self._output.folder / shard.file, np.uint8, slot.bytes, offset=place)

    def _digest(self, views: Iterable[View]) -> str:
        """Hash what the files hold of some tensors."""
        sha256 = hashlib.sha256()
        for view in views:
            for slot in self._slots(view):
                sha256.update(self._read(slot).data)
        return sha256.hexdigest()

    def _is_there(self, views: Collection[View]) -> bool:
        known = self._output.marks.get(_part(views))
        with suppress(FileNotFoundError):
            return known is not None and known == self._digest(views)
        return False

    def _mark(self, views: Collection[View]) -> None:
        self._output.mark(_part(views), self._digest(views))

    def _close_full(self, views: Iterable[View]) -> None:
        """Close the files of which every byte is written."""
        for view in views:
            for slot in self._slots(view):
                file = self._shards[slot.name].file
                self._left[file].discard(slot.name)
                if not self._left[file] and not self._output.has(file):
                    self._writer(slot.name).close()
                    del self._writers[file]


def _part(views: Collection[View]) -> str:
    """Name what is finished with some tensors."""
    return f"block {block_of(next(iter(views)).name)}"
