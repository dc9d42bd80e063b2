"""Selection: which linear layers of a model are written in a format, and what its readers must know of the others."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from backend.quantize.matrices import Matrices, experts_of
from backend.weights.anatomy import ahead, block_of, is_beside, is_linear, kept
from backend.weights.plan import Memory
from backend.weights.tensor import Tensor
from backend.weights.view import View
from backend.weights.writer import Slot

_TOGETHER = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up", "w1": "gate_up",
    "w3": "gate_up", "in_proj_qkv": "qkvz", "in_proj_z": "qkvz",
}  # fmt: skip
"""Layers of which vLLM makes one: all of them are written in the format or none."""

_ALSO = {
    "mamba": "mixer", "compressor.wgate": "compressor.gate_proj", "compressor.wkv": "compressor.kv_proj",
    "attn.wo_a": "self_attn.o_a_proj",
}  # fmt: skip
"""What checkpoints of Granite and Falcon-H1 call a module, by which vLLM 0.32 asks whether it is quantized otherwise;
and those of DeepSeek V4, by which transformers does."""


class Selection(ABC):
    """Which linear layers a format holds; those outside of the list of blocks stay as they are.

    Args:
        tensors: Of the model.
        config: What its config.json says.

    Attributes:
        matrices: How the tensors hold linear layers.
        layers: The tensors with some, in blocks.
        shapes: Of these layers, [out_features, in_features], by their names as written.
        odd: The tensors with layers that the format does not hold, and those that must stay with them.
        listed: Ends of the names of what is written in the format, where vLLM would not find all of it by itself, or
            transformers would find more in GPTQ: it skips nothing of a block by other means.
        stays: Parts of the names of the modules that readers must know that they are not.
    """

    def __init__(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> None:
        self.matrices = Matrices(config)
        spare = ahead(tensors)
        inside = [tensor for tensor in tensors if block_of(tensor.name) >= 0 and tensor.name not in spare]
        found = {tensor: {m.name: m.shape for m in self.matrices.of(tensor)} for tensor in inside}
        self.layers = tuple(tensor for tensor, shapes in found.items() if shapes)
        self.shapes = {name: shape for shapes in found.values() for name, shape in shapes.items()}
        stay = {_kin(t.name) for t in self.layers if not all(map(self.holds, found[t].values()))}
        self.odd = tuple(tensor for tensor in self.layers if _kin(tensor.name) in stay)
        self._chosen = {tensor.name for tensor in self.layers if _kin(tensor.name) not in stay}
        beside = [t.name for t in inside if t.name not in self._chosen and (found[t] or _is_weight(t))]
        named = kept(tensors)
        rest = (name for name in map(_from_number, map(_module, beside)) if not name.endswith(named))
        around = (".".join(t.name.split(".")[-3:-1]) for t in tensors if _is_around(t))
        self.stays = tuple(dict.fromkeys(_called([*named, *rest, *around])))
        ends = [".".join(_module(name).split(".")[-2:]) for name in self._chosen]
        apart = bool(beside) and not any(map(experts_of, self._chosen))  # of a mixture, transformers finds no expert
        self.listed = tuple(dict.fromkeys(_called(sorted(ends)))) if apart or any(map(_is_renamed, ends)) else ()

    @abstractmethod
    def holds(self, shape: Sequence[int]) -> bool:
        """Return whether the format holds a layer.

        Args:
            shape: [out_features, in_features].
        """

    @abstractmethod
    def slots(self, view: View) -> list[Slot]:
        """Return the tensors that a weight becomes."""

    @abstractmethod
    def memory(self, view: View) -> Memory:
        """Say what writing a tensor takes beside the pieces that are read."""

    def skips(self, tensor: Tensor) -> bool:
        """Return whether a tensor stays as it is."""
        return tensor.name not in self._chosen


def _module(name: str) -> str:
    """Return the module that a layer is in, or is; all experts of a mixture are one."""
    return experts_of(name) or name.removesuffix(".weight")


def _kin(name: str) -> str:
    """Return what all layers have in common that are written in the format together or not at all."""
    path, _, last = _module(name).rpartition(".")
    return f"{path}.{_TOGETHER.get(last, last)}"


def _from_number(name: str) -> str:
    """Return a module's name from the list of blocks on: what stands before differs between readers."""
    path, number, rest = re.split(r"\.(\d+)\.", name, maxsplit=1)
    return f"{path.rpartition('.')[2]}.{number}.{rest}"


def _renamed(name: str) -> str:
    """Return the name by which a reader asks for a module."""
    found = f".{name}."
    for ours, theirs in _ALSO.items():
        found = found.replace(f".{ours}.", f".{theirs}.")
    return found[1:-1]


def _is_renamed(name: str) -> bool:
    return _renamed(name) != name


def _called(names: Iterable[str]) -> Iterator[str]:
    """Return names, and those by which readers ask for the same modules."""
    for name in names:
        yield name
        if _is_renamed(name):
            yield _renamed(name)


def _is_weight(tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.name.endswith(".weight")


def _is_around(tensor: Tensor) -> bool:
    """Return whether a tensor is a linear layer between the blocks and the embeddings."""
    return is_linear(tensor) and block_of(tensor.name) < 0 and not is_beside(tensor.name)
