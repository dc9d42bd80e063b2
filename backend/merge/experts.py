"""LoRA on the experts of a mixture, which transformers holds in one tensor and a checkpoint one by one.

PEFT's `ParamWrapper`, chosen by target_parameters, keeps A as [experts * rank, in_features] and B as [out_features,
rank * experts], where the expert changes fastest. Where both parameters of a module are adapted their wrappers are
nested, the first innermost; the first stacks the gate's rows upon those of the up projection.
"""

from collections.abc import Collection, Iterator
from typing import Any

PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")
"""In the order in which transformers' modules have them."""

_PIECES = {
    "gate_up_proj": (("gate_proj", "w1"), ("up_proj", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj", "w2"),),
}
"""What a parameter consists of, and how checkpoints call that for each expert."""


def is_parameter(name: Any) -> bool:
    """Return whether the name of a parameter is that of experts that can be merged."""
    return str(name).rpartition(".")[2] in PARAMETERS and "experts" in str(name).split(".")


def is_target(name: Any) -> bool:
    """Return whether one of target_parameters can be merged; PEFT's all-linear names experts by the last part alone."""
    return is_parameter(name) or name in PARAMETERS or str(name).endswith(".weight")


def parameter_of(module: str, targets: Collection[str]) -> str | None:
    """Return the parameter that matrices of a module are for, by how deep they are wrapped; None of another module.

    Args:
        module: As the adapter names it, with `.base_layer` for each wrapper around it.
        targets: target_parameters.
    """
    bare = module.partition(".base_layer")[0]
    if not f".{bare}".endswith(".experts"):
        return None
    adapted = [name for name in PARAMETERS if any(f".{bare}.{name}".endswith(f".{target}") for target in targets)]
    depth = module.count(".base_layer")
    return f"{bare}.{adapted[-1 - depth]}" if depth < len(adapted) else None


def pieces(parameter: str, expert: int, outputs: int) -> Iterator[tuple[list[str], int, int]]:
    """Yield the tensors that one expert's part of a parameter lies in.

    Args:
        parameter: Its name, as transformers has it.
        expert: Its number.
        outputs: Rows of the whole for one expert.

    Yields:
        Names that checkpoints have for a tensor, its first row in the parameter, and the one after its last.
    """
    path, _, name = parameter.rpartition(".")
    step = outputs // len(_PIECES[name])
    for index, called in enumerate(_PIECES[name]):
        yield [f"{path}.{expert}.{last}.weight" for last in called], index * step, (index + 1) * step
