"""Codes with scales: what the methods share that write a matrix so, in compressed-tensors, without calibration.

Each row or block of a matrix is rounded by itself, so that pieces of a tensor are all that is ever in memory. Experts
that lie in one tensor are written one by one, as vLLM reads them.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.models.rewriting import StreamOptions
from backend.quantize import compressed_tensors
from backend.quantize.layouts.layout import Matrix
from backend.quantize.method import MethodOptions
from backend.quantize.selection import Selection
from backend.weights.anatomy import TRANSPOSED
from backend.weights.floats import Bytes
from backend.weights.plan import Memory, Plan
from backend.weights.rounding import Rows
from backend.weights.tensor import Tensor
from backend.weights.view import Source, View
from backend.weights.writer import Slot, Writer


class ScaledOptions(MethodOptions, StreamOptions):
    """What the options of such a method say of its codes."""

    FORMAT: ClassVar[str]

    @property
    @abstractmethod
    def weights(self) -> compressed_tensors.Arguments:
        """How weights are quantized."""

    @property
    def activations(self) -> compressed_tensors.Arguments | None:
        """How the inputs of layers are, where they are."""
        return None

    @property
    @abstractmethod
    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale; -1: all of a row."""

    @property
    def choices(self) -> int:
        """Scales that are tried of each block."""
        return 1

    def holds(self, shape: Sequence[int]) -> bool:
        """Return whether the format holds a layer, [out_features, in_features]."""
        return True

    @abstractmethod
    def slots(self, matrix: Matrix, dtype: str) -> list[Slot]:
        """Return the tensors that a matrix becomes: its codes, its scales, and its shape where the format has that.

        Args:
            matrix: Its name and shape.
            dtype: Of the model, as safetensors names it.
        """

    @abstractmethod
    def encode(self, rows: Rows) -> tuple[Bytes, Bytes]:
        """Return the bytes of codes, and of the scales of rows that are whole blocks, or the end of a matrix."""

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model, before anything is downloaded.

        Raises:
            SpecError: No linear layers in blocks, or layers that readers do not find.
        """
        if facts.model_type in TRANSPOSED:
            raise SpecError(
                f"'{facts.model}' is of the type '{facts.model_type}', whose layers no reader of compressed-tensors"
                " finds: choose nf4 or gptq."
            )
        if not self.form(facts.tensors, facts.config).shapes:
            raise SpecError(f"'{facts.model}' has no linear layers in blocks that could be quantized: choose nf4.")

    def form(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> "Scaled":
        """Return what becomes of each tensor."""
        return Scaled(self, tensors, config)

    def config(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes in config.json."""
        stays = self.form(tensors, config).stays
        said = compressed_tensors.quantization_config(self.FORMAT, self.weights, stays, self.activations)
        return {"quantization_config": said}

    def plan(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Plan:
        """Say which file will hold which bytes."""
        form = self.form(tensors, config)
        return self.planned(tensors, config, form)._replace(odd=form.odd)


class Scaled(Selection):
    """What becomes of the tensors of a model.

    Args:
        options: Of the method.
        tensors: Of the model.
        config: What its config.json says.
    """

    def __init__(self, options: ScaledOptions, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> None:
        self._options = options
        super().__init__(tensors, config)

    def __repr__(self) -> str:
        return repr(self._options)  # part of what a plan is known by

    def holds(self, shape: Sequence[int]) -> bool:
        """Return whether the format holds a layer."""
        return self._options.holds(shape)

    def slots(self, view: View) -> list[Slot]:
        """Return the tensors that a weight becomes."""
        return [slot for matrix in self.matrices.of(view.tensor) for slot in self._options.slots(matrix, view.dtype)]

    def memory(self, view: View) -> Memory:
        """Codes, a row's share of scales and of those to choose from; of turned experts one as a whole."""
        down, across = self._options.block
        columns = next(iter(self.matrices.of(view.tensor))).shape[1]
        each = 1 + (4 * self._options.choices + 10) / (columns if across < 0 else across)
        if not self._is_turned(view.tensor):
            return Memory(each, 0, down * columns)
        width = view.tensor.bytes // view.elements
        return Memory(each + width, view.tensor.bytes // view.tensor.shape[0], down * columns)

    def write(self, source: Source, writer: Writer) -> None:
        """Write the codes and scales of the matrices in a tensor, some rows at a time."""
        matrices = self.matrices.of(source.tensor)
        slots = [self._options.slots(matrix, source.dtype) for matrix in matrices]
        spans = [self.matrices.span(source.tensor, matrix, part) for matrix, part in matrices.items()]
        columns, (down, across) = next(iter(matrices)).shape[1], self._options.block

        def piece(number: int, top: int, raw: Bytes) -> None:
            code, scale, *_ = slots[number]
            codes, scales = self._options.encode(Rows(raw, source.dtype, columns, columns if across < 0 else across))
            writer.write(code.name, codes, top * code.bytes // spans[number].length)
            writer.write(scale.name, scales, top // down * scale.bytes // scale.shape[0])

        source.each_rows(spans, piece, down, self._is_turned(source.tensor))
        for matrix, (_, _, *shapes) in zip(matrices, slots, strict=True):
            for shape in shapes:
                writer.write(shape.name, np.array(matrix.shape, np.int64))

    def _is_turned(self, tensor: Tensor) -> bool:
        return self.matrices.turned and len(tensor.shape) > 2
