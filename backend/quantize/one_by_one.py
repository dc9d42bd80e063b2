"""Experts one by one: how a format of single layers is written of experts that lie in one tensor, turned.

transformers builds the experts of Llama 4 as linear layers once its weights are in bitsandbytes' formats, each with a
name of its own (SequentialLlama4TextExperts), and finds none that lie as the model's own class has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.quantize.layouts.layout import Matrix
from backend.quantize.matrices import Matrices, Part
from backend.weights.floats import Bytes
from backend.weights.plan import Memory
from backend.weights.rewrite import Format
from backend.weights.tensor import Tensor
from backend.weights.view import Source, View
from backend.weights.writer import Slot, Writer


class OneByOne:
    """A format, of experts too.

    Args:
        single: Writes a layer.
        config: What the model's config.json says.
    """

    def __init__(self, single: Format, config: Mapping[str, Any]) -> None:
        self._single = single
        self._matrices = Matrices(config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._single!r})"  # part of what a plan is known by

    def skips(self, tensor: Tensor) -> bool:
        """Return whether a tensor stays as it is."""
        return self._single.skips(tensor) and not self._experts(tensor)

    def slots(self, view: View) -> list[Slot]:
        """Return the tensors that a weight becomes, or those of each expert."""
        experts = self._experts(view.tensor)
        if not experts:
            return self._single.slots(view)
        dtype = view.dtype
        return [slot for matrix in experts for slot in self._single.slots(View(_alone(view, matrix), dtype, True))]

    def memory(self, view: View) -> Memory:
        """What a layer takes; of experts one as it lies, and a layer of it turned."""
        experts = self._experts(view.tensor)
        if not experts:
            return self._single.memory(view)
        alone = self._single.memory(View(_alone(view, next(iter(experts))), view.dtype, True))
        return alone._replace(kept=alone.kept + 2 * view.tensor.bytes // view.tensor.shape[0])

    def write(self, source: Source, writer: Writer) -> None:
        """Write a layer, or each expert's."""
        experts = self._experts(source.tensor)
        if not experts:
            self._single.write(source, writer)
        for matrix, part in experts.items():
            alone = _alone(source, matrix)
            self._single.write(_Expert(alone, source.dtype, True, source.weights, source.tell, source, part), writer)

    def _experts(self, tensor: Tensor) -> dict[Matrix, Part]:
        """Return the layers of experts in a tensor that holds all of them; none in any other."""
        return {matrix: part for matrix, part in self._matrices.of(tensor).items() if part is not None}


@dataclass(frozen=True)
class _Expert(Source):
    """A layer of an expert, read from the tensor that holds all."""

    stack: Source
    part: Part

    def _whole(self) -> Callable[[int, int], Bytes]:
        outputs, _ = self.shape
        last = self.part.first + outputs * self.part.step
        mine = self.stack.expert(self.part.expert)[:, self.part.first : last : self.part.step].transpose(1, 0, 2)
        turned = np.ascontiguousarray(mine).reshape(-1)
        width = len(turned) // self.elements
        return lambda first, last: turned[first * width : last * width]


def _alone(view: View, matrix: Matrix) -> Tensor:
    """Return a layer of an expert as if it lay by itself, [in_features, out_features]."""
    return Tensor(name=matrix.name, dtype=view.tensor.dtype, shape=matrix.shape[::-1])
