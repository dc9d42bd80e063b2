"""Groups: inputs of a layer that share a scale, and which sizes of them divide the layers of a model."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.quantize.method import MethodOptions
from backend.quantize.selection import Selection
from backend.weights.tensor import Tensor

GROUP_SIZES = (32, 64, 128)

if TYPE_CHECKING:
    GroupSize = int
else:
    GroupSize = Literal[-1, *GROUP_SIZES]

MULTIPLE = 32
"""Of what a layer's inputs and outputs are multiples: the layouts pack so many at a time."""


class GroupedOptions(MethodOptions):
    """The options of a method that packs integers in groups."""

    group_size: GroupSize = Field(
        128, description="Inputs that share a scale; -1: all of a row. Smaller: better and a little larger."
    )

    @abstractmethod
    def form(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Selection:
        """Return what becomes of each tensor."""

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model, before anything is downloaded.

        Raises:
            SpecError: No linear layers in blocks, or none that the layout holds; a group size that does not divide
                most of them, with the sizes that do.
        """
        shapes = self.form(facts.tensors, facts.config).shapes
        if not shapes:
            raise SpecError(f"'{facts.model}' has no linear layers in blocks that could be quantized: choose nf4.")
        most = _held(shapes.values(), -1)
        if not most:
            name, (outputs, inputs) = next(iter(shapes.items()))
            raise SpecError(
                f"'{name}' has {inputs} inputs and {outputs} outputs, and the layout packs {MULTIPLE} at a time: choose"
                " method nf4."
            )
        if _held(shapes.values(), self.group_size) < most / 2:
            name = next(name for name, (_, inputs) in shapes.items() if inputs % self.group_size)
            text = (
                f"{self.group_size} does not divide the {shapes[name][1]} inputs of '{name}': choose"
                f" {' or '.join(map(str, self.group_sizes(facts)))}"
            )
            raise SpecError(f"group_size: {text}.", {"group_size": text})

    def group_sizes(self, facts: ModelFacts) -> list[int]:
        """Return the group sizes with which all is quantized that can be, the largest first; -1 always is one."""
        shapes = self.form(facts.tensors, facts.config).shapes.values()
        most = _held(shapes, -1)
        return [*(size for size in reversed(GROUP_SIZES) if _held(shapes, size) == most), -1]


def fits(shape: Sequence[int], group_size: int) -> bool:
    """Return whether integers of a layer can be packed, and groups divide its inputs.

    Args:
        shape: [out_features, in_features].
        group_size: -1: all inputs.
    """
    outputs, inputs = shape
    packed = inputs % MULTIPLE == 0 and outputs % MULTIPLE == 0
    return packed and (group_size < 0 or inputs % group_size == 0)


def _held(shapes: Iterable[Sequence[int]], group_size: int) -> int:
    """Return how many weights can be packed in groups of a size."""
    return sum(math.prod(shape) for shape in shapes if fits(shape, group_size))
