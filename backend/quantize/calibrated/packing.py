"""Packing: which linear layers of a model a layout holds, and what becomes of each of its tensors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backend.models.rewriting import loaded_dtype
from backend.quantize.calibrated import kv_cache
from backend.quantize.groups import fits
from backend.quantize.selection import Selection
from backend.weights.floats import SAFETENSORS
from backend.weights.plan import Memory
from backend.weights.tensor import Tensor
from backend.weights.view import View
from backend.weights.writer import Slot

if TYPE_CHECKING:
    from backend.quantize.calibrated.options import CalibratedOptions


class Packing(Selection):
    """What becomes of the tensors of a model.

    Args:
        options: Say the layout and its groups.
        tensors: Of the model.
        config: What its config.json says.

    Attributes:
        layout: In which linear layers are written.
        scheme: What all grids have in common.
    """

    def __init__(self, options: "CalibratedOptions", tensors: Sequence[Tensor], config: Mapping[str, Any]) -> None:
        self._options = options
        self.layout = options.written
        self.scheme = options.scheme._replace(dtype=SAFETENSORS[loaded_dtype(config, tensors)])
        super().__init__(tensors, config)

    def holds(self, shape: Sequence[int]) -> bool:
        """Return whether the layout holds a layer.

        Args:
            shape: [out_features, in_features].
        """
        return fits(shape, self._options.group_size)

    def slots(self, view: View) -> list[Slot]:
        """Return the tensors that a weight becomes."""
        matrices = self.matrices.of(view.tensor)
        return [
            *(slot for matrix in matrices for slot in self.layout.slots(matrix, self.scheme)),
            *self.beside(view.name),
        ]

    def beside(self, name: str) -> list[Slot]:
        """Return the scales of the cache that lie beside a packed layer's weight, by the name of that."""
        return [Slot(scale, self.scheme.dtype, (1,)) for scale in kv_cache.beside(name) if self._options.cached]

    def memory(self, view: View) -> Memory:
        """Nothing but the block that it is in, which the engine's own estimate counts."""
        return Memory(0, 0)
