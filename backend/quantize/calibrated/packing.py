"""Packing: which linear layers of a model a layout holds, and what becomes of each of its tensors."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backend.models.rewriting import loaded_dtype
from backend.quantize.matrices import Matrices, experts_of
from backend.weights.anatomy import ahead, block_of, kept
from backend.weights.floats import SAFETENSORS
from backend.weights.plan import Memory
from backend.weights.tensor import Tensor
from backend.weights.view import View
from backend.weights.writer import Slot

if TYPE_CHECKING:
    from backend.quantize.calibrated.options import CalibratedOptions

MULTIPLE = 32
"""Of what a layer's inputs and outputs are multiples: the layouts pack so many at a time."""

_TOGETHER = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up", "w1": "gate_up",
    "w3": "gate_up", "in_proj_qkv": "qkvz", "in_proj_z": "qkvz",
}  # fmt: skip
"""Layers of which vLLM makes one: all of them are packed or none."""

_OURS, _VLLMS = "mamba", "mixer"
"""What checkpoints of Granite and Falcon-H1 call a module, and how vLLM 0.32 asks whether it is quantized."""


class Packing:
    """What becomes of the tensors of a model.

    Args:
        options: Say the layout and its groups.
        tensors: Of the model.
        config: What its config.json says.

    Attributes:
        layout: In which linear layers are written.
        scheme: What all grids have in common.
        matrices: How the tensors hold linear layers.
        layers: The tensors with some, in blocks.
        shapes: Of these layers, [out_features, in_features], by their names as written.
        odd: The tensors with layers that the layout does not hold, and those that must stay with them.
        listed: Ends of the names of what is packed, where vLLM would not find all of it by itself.
        stays: Parts of the names of the modules that readers must know that they are not packed.
    """

    def __init__(self, options: "CalibratedOptions", tensors: Sequence[Tensor], config: Mapping[str, Any]) -> None:
        self._options = options
        self.layout = options.written
        self.scheme = options.scheme._replace(dtype=SAFETENSORS[loaded_dtype(config, tensors)])
        self.matrices = Matrices(config)
        spare = ahead(tensors)
        inside = [tensor for tensor in tensors if block_of(tensor.name) >= 0 and tensor.name not in spare]
        found = {tensor: {m.name: m.shape for m in self.matrices.of(tensor)} for tensor in inside}
        self.layers = tuple(tensor for tensor, shapes in found.items() if shapes)
        self.shapes = {name: shape for shapes in found.values() for name, shape in shapes.items()}
        stay = {_kin(t.name) for t in self.layers if not all(map(self.holds, found[t].values()))}
        self.odd = tuple(tensor for tensor in self.layers if _kin(tensor.name) in stay)
        self._packed = {tensor.name for tensor in self.layers if _kin(tensor.name) not in stay}
        beside = [t.name for t in inside if t.name not in self._packed and (found[t] or _is_weight(t))]
        named = kept(tensors)
        rest = (name for name in map(_from_number, map(_module, beside)) if not name.endswith(named))
        self.stays = tuple(dict.fromkeys((*named, *_called(rest))))
        ends = [".".join(_module(name).split(".")[-2:]) for name in self._packed]
        self.listed = tuple(dict.fromkeys(_called(sorted(ends)))) if any(map(_is_renamed, ends)) else ()

    def holds(self, shape: Sequence[int], group_size: int | None = None) -> bool:
        """Return whether the layout holds a layer.

        Args:
            shape: [out_features, in_features].
            group_size: Another one than the options'.
        """
        outputs, inputs = shape
        group = self._options.group_size if group_size is None else group_size
        fits = inputs % MULTIPLE == 0 and outputs % MULTIPLE == 0
        return fits and (group < 0 or inputs % group == 0)

    def held(self, group_size: int) -> int:
        """Return how many weights the layout holds with a group size."""
        return sum(math.prod(shape) for shape in self.shapes.values() if self.holds(shape, group_size))

    def skips(self, tensor: Tensor) -> bool:
        """Return whether a tensor stays as it is."""
        return tensor.name not in self._packed

    def slots(self, view: View) -> list[Slot]:
        """Return the tensors that a weight becomes."""
        matrices = self.matrices.of(view.tensor)
        return [slot for matrix in matrices for slot in self.layout.slots(matrix, self.scheme)]

    def memory(self, view: View) -> Memory:
        """Nothing but the block that it is in, which the engine's own estimate counts."""
        return Memory(0, 0)


def _module(name: str) -> str:
    """Return the module that a layer is in, or is; all experts of a mixture are one."""
    return experts_of(name) or name.removesuffix(".weight")


def _kin(name: str) -> str:
    """Return what all layers have in common that are packed together or not at all."""
    path, _, last = _module(name).rpartition(".")
    return f"{path}.{_TOGETHER.get(last, last)}"


def _from_number(name: str) -> str:
    """Return a module's name from the list of blocks on: what stands before differs between readers."""
    path, number, rest = re.split(r"\.(\d+)\.", name, maxsplit=1)
    return f"{path.rpartition('.')[2]}.{number}.{rest}"


def _is_renamed(name: str) -> bool:
    return _OURS in name.split(".")


def _called(names: Iterable[str]) -> Iterator[str]:
    """Return names, and those by which vLLM asks for the same modules."""
    for name in names:
        yield name
        if _is_renamed(name):
            yield ".".join(_VLLMS if part == _OURS else part for part in name.split("."))


def _is_weight(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.name.endswith(".weight")
