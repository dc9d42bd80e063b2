"""Layers: the linear layers of a filled block, the experts among them, and where in torch's module each one lies."""

from collections.abc import Callable, Iterable
from typing import Any

from backend.quantize.calibrated.architectures import Group
from backend.quantize.calibrated.block_files import Numbers
from backend.quantize.calibrated.channel_scales import State
from backend.quantize.calibrated.empty_model import Block
from backend.quantize.calibrated.experts import Experts
from backend.quantize.calibrated.packing import Packing
from backend.weights.tensor import Tensor

_FIRST = ("gate_proj", "up_proj")
"""What lies side by side in the outputs of an expert's first layer."""


class Layers:
    """What is quantized of a block, and what stays.

    Args:
        block: Is filled.
        packing: What becomes of its tensors.

    Attributes:
        module: Torch's.
        tensors: What the checkpoint holds of it.
        linears: The modules of the layers that are packed, experts aside.
        experts: Those that are packed, by the names of the modules that hold them.
        names: What each parameter, and each expert's matrix, is called in the result.
    """

    def __init__(self, block: Block, packing: Packing) -> None:
        self.module = block.module
        self._packing = packing
        self.tensors: list[Tensor] = list(block.tensors.values())
        self.linears: list[str] = []
        self.names: dict[str, str] = {}
        self._places: dict[str, Any] = {}
        matrices: dict[str, dict[int, dict[str, Any]]] = {}
        parameters = dict(block.module.named_parameters())
        for tensor in self.tensors:
            place = block.places[tensor.name]
            p = parameters.get(place.parameter)
            if p is None or (packing.skips(tensor) and (place.expert is not None or p.dim() > 2)):
                continue
            if packing.skips(tensor):
                self._add(place.parameter, tensor.name, p)
                continue
            path, _, last = place.parameter.rpartition(".")
            for matrix, part in packing.matrices.of(tensor).items():
                if part is None and place.expert is None:
                    self.linears.append(path)
                    self._add(place.parameter, matrix.name, p.T if packing.matrices.transposed else p)
                    continue
                if part is None:
                    expert, name = place.expert or 0, _FIRST[place.part] if place.parts > 1 else last
                    view = p[expert].chunk(place.parts)[place.part]
                else:
                    expert, name = part.expert, matrix.name.split(".")[-2]
                    view = packing.matrices.view(p, part, matrix.shape[0])
                matrices.setdefault(path, {}).setdefault(expert, {})[name] = view
                self._add(f"{path}.{expert}.{name}", matrix.name, view)
        self.experts = {path: Experts(block.module.get_submodule(path), found) for path, found in matrices.items()}

    def state(self) -> State:
        """Return what is not an expert's in float32; weights of linear layers as [out_features, in_features]."""
        ours = (name for name, _ in self.module.named_parameters() if name in self.names)
        return {name: self._places[self.names[name]].detach().float() for name in ours}

    def there(self, group: Group) -> Group | None:
        """Return a group with those of its layers that the block has; None where one of them is not packed."""
        modules = dict(self.module.named_modules())
        found = tuple(name for name in group.linears if name in modules)
        return group._replace(linears=found) if found and all(name in self.linears for name in found) else None

    def on_input(self, linear: str, hear: Callable[[Any], Any]) -> Any:
        """Call `hear` with the inputs of a layer, [tokens, in_features], until the handle is removed."""

        def hook(module: Any, args: tuple[Any, ...]) -> None:
            hear(args[0].reshape(-1, args[0].shape[-1]))

        return self.module.get_submodule(linear).register_forward_pre_hook(hook)

    def cached(self) -> dict[str, tuple[str, ...]]:
        """Return the modules of attention whose cache gets scales, and what these are called in the result."""
        found: dict[str, tuple[str, ...]] = {}
        for linear in self.linears:
            attention, slots = linear.rpartition(".")[0], self._packing.beside(self.names[f"{linear}.weight"])
            found[attention] = (*found.get(attention, ()), *(slot.name for slot in slots))
        return {attention: scales for attention, scales in found.items() if scales}

    def put(self, found: Iterable[tuple[str, Numbers]]) -> None:
        """Put numbers in the place of the block's, by what they are called in the result."""
        import torch

        for name, values in found:
            if name in self._places:
                self._places[name].copy_(torch.as_tensor(values))

    def _add(self, name: str, written: str, view: Any) -> None:
        self.names[name], self._places[written] = written, view
