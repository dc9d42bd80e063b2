"""Which layers get an adapter: the linear ones of the text tower, but for those that PEFT does not train.

Towers of pictures and sound, routers and slim layers stay as they are, and so do the experts of a mixture unless they
are asked for: transformers holds them in parameters, [experts, …, …], which PEFT's target_parameters names.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from backend.merge.experts import is_parameter
from backend.models.facts import ModelFacts
from backend.models.families import traits
from backend.models.native import rebuilds_experts
from backend.quantize.matrices import experts_of
from backend.weights.anatomy import ahead, block_of, is_expert, is_linear
from backend.weights.tensor import Tensor

ALL_LINEAR = ("all-linear",)

EXPERTS = frozenset(("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))
"""Names that PEFT takes for the experts of a mixture, wherever they stand, in models whose experts it rebuilds."""

CHOOSING = "indexer"
"""Part of the names of layers that choose what others attend to: no gradient reaches them."""


_SECOND = {"down_proj", "w2", "output_linear"}
"""What checkpoints call the second layer of experts."""


class Stack(NamedTuple):
    """A parameter that holds a layer of all of a block's experts."""

    experts: int
    outputs: int
    inputs: int

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return self.experts * self.outputs * self.inputs


def stacks(facts: ModelFacts) -> list[Stack]:
    """Return the parameters that transformers holds the experts of a model in."""
    spare = ahead(facts.tensors)
    found: dict[tuple[str, bool], list[Tensor]] = {}
    for tensor in facts.tensors:
        if is_expert(tensor) and block_of(tensor.name) >= 0 and tensor.name not in spare:
            second = not _SECOND.isdisjoint(tensor.name.split("."))
            found.setdefault((experts_of(tensor.name), second), []).append(tensor)
    return [_stack(tensors) for tensors in found.values()]


def _stack(tensors: list[Tensor]) -> Stack:
    """Return what tensors of one layer of experts become, which are theirs one by one or of all."""
    first = tensors[0].shape
    if len(first) == 3:
        return Stack(first[0], sum(tensor.shape[1] for tensor in tensors), first[2])
    count = len({tensor.name.split(".experts.")[1].split(".")[0] for tensor in tensors})
    return Stack(count, sum(tensor.shape[0] for tensor in tensors) // count, first[1])


def parameters(model: Any) -> list[str]:
    """Return the full names of the parameters of a model that hold its experts, as its class has them."""
    held = (name for name, values in model.named_parameters() if values.dim() == len(Stack._fields))
    return [name for name in held if is_parameter(name) and block_of(name) >= 0]


def adaptable(facts: ModelFacts) -> list[Tensor]:
    """Return the weights of the linear layers that can get an adapter: the experts of a mixture get none."""
    without, spare = left_out(facts), ahead(facts.tensors)
    found = (tensor for tensor in facts.tensors if _learns(tensor) and tensor.name not in spare)
    return [tensor for tensor in found if tensor.name.split(".")[-2] not in without]


def left_out(facts: ModelFacts) -> frozenset[str]:
    """Return the last part of the names of linear layers of a model that PEFT does not train as what they are."""
    left = EXPERTS if rebuilds_experts(facts.model_type) and has_experts(facts) else frozenset[str]()
    known = traits(facts.model_type)
    return left | {name for name in (known.multiplied, known.in_kernels) if name}


def has_experts(facts: ModelFacts) -> bool:
    """Return whether a model is a mixture of experts."""
    return any(is_expert(tensor) for tensor in facts.tensors)


def targets(model: Any, facts: ModelFacts, chosen: Iterable[str]) -> list[str]:
    """Return the full names of the layers of a model that get an adapter, as its class has them.

    Args:
        model: Of transformers.
        facts: Of its folder.
        chosen: ALL_LINEAR, or the last parts of names.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    without, names = left_out(facts), set(chosen)
    found = []
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        wanted = last not in without and (last in names or names == {*ALL_LINEAR})
        packed = hasattr(module, "qweight")  # GPTQModel's layers, which are tuned as they are
        if wanted and (packed or isinstance(module, nn.Linear | Conv1D)) and _learns(_weight(name)):
            found.append(name)
    return found


def _learns(tensor: Tensor) -> bool:
    """Return whether a tensor is the weight of a linear layer of the text tower that gradients reach."""
    return is_linear(tensor) and CHOOSING not in tensor.name.split(".")


def _weight(module: str) -> Tensor:
    """Return a weight of the name that it has in a linear layer; nothing but the name counts."""
    return Tensor(name=f"{module}.weight", dtype="BF16", shape=(1, 1))
