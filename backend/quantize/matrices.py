"""Matrices: which linear layers a tensor of a checkpoint holds, and where in it.

All experts of a mixture in one tensor become matrices of their own, named as vLLM reads those of the same model type.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from backend.models.families import traits
from backend.quantize.layouts.layout import Matrix
from backend.weights.anatomy import TRANSPOSED, is_expert, is_linear
from backend.weights.tensor import Tensor
from backend.weights.view import Span

_STACKS = {
    "experts.gate_up_proj": ("gate_proj", "up_proj"),
    "experts.up_proj": ("up_proj",),
    "experts.down_proj": ("down_proj",),
    "block_sparse_moe.input_linear.weight": ("gate_proj", "up_proj"),
    "block_sparse_moe.output_linear.weight": ("down_proj",),
}
"""By the end of a tensor's name, what lies side by side in the outputs of each of its experts."""

_SINGLE = re.compile(r"\.experts\.\d+\.\w+\.weight(?:_packed)?$")

_OF_EXPERTS = re.compile(r"(.+?)\.experts\.|(.+\.block_sparse_moe)\.(?:input|output)_linear\.weight$")


class Part(NamedTuple):
    """Where a matrix lies in a tensor that holds all experts.

    Attributes:
        expert: Its number.
        first: Its first row among the outputs.
        step: From one of its rows to the next.
    """

    expert: int
    first: int
    step: int


class Matrices:
    """How the tensors of a model hold its linear layers.

    Args:
        config: What its config.json says.

    Attributes:
        transposed: Whether the model's class keeps weights as [in_features, out_features].
        turned: Whether it does so with all experts in one tensor.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        inner = config.get("text_config")
        types = {config.get("model_type"), inner.get("model_type") if isinstance(inner, Mapping) else None}
        known = [traits(kind) for kind in types]
        self._multiplied = next((each.multiplied for each in known if each.multiplied), None)
        self.transposed = not types.isdisjoint(TRANSPOSED)
        self.turned = any(each.turned for each in known)
        self._interleaved = any(each.interleaved for each in known)

    def of(self, tensor: Tensor) -> dict[Matrix, Part | None]:
        """Return the linear layers in a tensor, whether or not a layout holds them, each with its place in a stack."""
        if not {"router", self._multiplied}.isdisjoint(tensor.name.split(".")):
            return {}
        if is_linear(tensor):
            return {Matrix(tensor.name, tensor.shape[::-1] if self.transposed else tensor.shape): None}
        if not is_expert(tensor):
            return {}
        if len(tensor.shape) == 2:
            return {Matrix(tensor.name, tensor.shape): None} if is_single(tensor.name) else {}
        base = experts_of(tensor.name)
        names = next((names for end, names in _STACKS.items() if base and tensor.name.endswith(f".{end}")), ())
        outputs, inputs = tensor.shape[:0:-1] if self.turned else tensor.shape[1:]
        count = max(len(names), 1)
        rows, mixed = outputs // count, self._interleaved and count > 1
        return {
            Matrix(f"{base}.{expert}.{name}.weight", (rows, inputs)): Part(
                expert, i if mixed else i * rows, count if mixed else 1
            )
            for expert in range(tensor.shape[0])
            for i, name in enumerate(names)
        }

    def span(self, tensor: Tensor, matrix: Matrix, place: Part | None) -> Span:
        """Return which of a tensor's outputs a matrix is, those of all experts counted through."""
        if place is None:
            return Span(0, matrix.shape[0])
        outputs = tensor.shape[-1 if self.turned else -2]
        return Span(place.expert * outputs + place.first, matrix.shape[0], place.step)

    def view(self, stack: Any, place: Part, outputs: int) -> Any:
        """Return a matrix in a tensor that holds all experts, [out_features, in_features], without a copy.

        Args:
            stack: Torch's tensor, as the checkpoint has it.
            place: Where in it.
            outputs: Of the matrix.
        """
        whole = stack[place.expert].T if self.turned else stack[place.expert]
        return whole[place.first : place.first + outputs * place.step : place.step]


def stacks(name: str) -> tuple[str, ...]:
    """Return the names that tensors can have of which a matrix of an expert is a part.

    Args:
        name: Of the matrix, as it lies by itself.
    """
    base, last = experts_of(name), name.split(".")[-2]
    ends = [end for end, parts in _STACKS.items() if base and last in parts]
    return tuple(f"{base.rpartition('.' + end.partition('.')[0])[0]}.{end}" for end in ends)


def is_single(name: str) -> bool:
    """Return whether a name is that of a matrix of an expert that lies by itself, or of its codes."""
    return _SINGLE.search(name) is not None


def experts_of(name: str) -> str:
    """Return the module that a tensor of experts is in, as it is named where they lie one by one; else nothing."""
    found = _OF_EXPERTS.match(name)
    return f"{found[1] or found[2]}.experts" if found else ""
