"""Which layers get an adapter: the linear ones of the text tower, but for those that PEFT does not train.

Towers of pictures and sound, routers and slim layers stay as they are, and so do the experts of a mixture.
"""

from collections.abc import Iterable
from typing import Any

from backend.models.facts import ModelFacts
from backend.models.families import MULTIPLIED
from backend.models.native import rebuilds_experts
from backend.weights.anatomy import ahead, is_expert, is_linear
from backend.weights.tensor import Tensor

ALL_LINEAR = ("all-linear",)

EXPERTS = frozenset(("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))
"""Names that PEFT takes for the experts of a mixture, wherever they stand, in models whose experts it rebuilds."""

MAMBA = ("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "mamba", "mamba2", "nemotron_h", "zamba2")
"""Model types whose out_proj is multiplied by without being called, where its kernels are; PEFT refuses most."""


CHOOSING = "indexer"
"""Part of the names of layers that choose what others attend to: no gradient reaches them."""


def adaptable(facts: ModelFacts) -> list[Tensor]:
    """Return the weights of the linear layers that can get an adapter: the experts of a mixture get none."""
    without, spare = left_out(facts), ahead(facts.tensors)
    found = (tensor for tensor in facts.tensors if _learns(tensor) and tensor.name not in spare)
    return [tensor for tensor in found if tensor.name.split(".")[-2] not in without]


def left_out(facts: ModelFacts) -> frozenset[str]:
    """Return the last part of the names of linear layers of a model that PEFT does not train as what they are."""
    left = EXPERTS if rebuilds_experts(facts.model_type) and has_experts(facts) else frozenset[str]()
    left |= {"out_proj"} if facts.model_type in MAMBA else set()
    return left | {name for name in (MULTIPLIED.get(facts.model_type),) if name}


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
