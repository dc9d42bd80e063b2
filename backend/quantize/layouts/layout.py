"""Layout: how a linear layer's integers, scales and zeros lie in a file, whatever algorithm found them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.quantize.readers import Readers
from backend.weights.writer import Slot


class Grid(NamedTuple):
    """What a linear layer was rounded to: the weight of output o and input i is (q - zero) · scale.

    Attributes:
        q: Integers, uint8 [out_features, in_features].
        scales: float32 [out_features, groups]; float16 and bfloat16 both hold them exactly.
        zeros: Integers, uint8 [out_features, groups].
        g_idx: The group of each input channel, int32 [in_features].
        unit: By what scales are multiplied before those are stored that have a scale of their own; one for all layers
            with the same input.
        reach: The largest magnitude of the inputs that calibration saw, where it saw any.
    """

    q: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    g_idx: NDArray[np.int32]
    unit: float = 1.0
    reach: float = 0.0

    def part(self, first: int, last: int) -> "Grid":
        """Return the outputs from `first` to before `last`."""
        part = slice(first, last)
        return self._replace(q=self.q[part], scales=self.scales[part], zeros=self.zeros[part])

    def weight(self) -> NDArray[np.float32]:
        """Return the weights that it stands for, [out_features, in_features]."""
        steps = self.q.astype(np.float32) - self.zeros.astype(np.float32)[:, self.g_idx]
        weight: NDArray[np.float32] = steps * self.scales[:, self.g_idx]
        return weight


class Matrix(NamedTuple):
    """A linear layer's weight.

    Attributes:
        name: Whose last part is `weight`.
        shape: [out_features, in_features].
    """

    name: str
    shape: tuple[int, ...]


class Scheme(NamedTuple):
    """What all grids of a model have in common.

    Attributes:
        bits: Of an integer.
        group_size: Inputs that share a scale; -1: all of a row.
        symmetric: Whether all zeros lie in the middle of the grid.
        reordered: Whether groups are made of inputs in the order of how strongly they are used.
        damp_percent: What the algorithm added to the Gram matrix: GPTQ's config records it, and no reader needs it.
        dtype: The model's, as safetensors names it: some layouts store scales in it.
    """

    bits: int
    group_size: int = -1
    symmetric: bool = True
    reordered: bool = False
    damp_percent: float = 0.01
    dtype: str = "F16"

    def groups(self, inputs: int) -> int:
        """Return the groups that a layer of so many inputs has."""
        return 1 if self.group_size < 0 else inputs // self.group_size


class Layout(Protocol):
    """What the module of a layout has.

    Attributes:
        BITS: Of an integer, that it can hold.
        LOWEST: The smallest zero that every reader takes.
        TURNED: Whether readers take it for layers whose class keeps weights as [in_features, out_features], too.
        TENSORS: The last parts of a packed layer's names; every such layer has the first of them.
    """

    BITS: tuple[int, ...]
    LOWEST: int
    TURNED: bool
    TENSORS: tuple[str, ...]

    def config(self, scheme: Scheme, kept: Sequence[str] = (), packed: Sequence[str] = ()) -> dict[str, Any]:
        """Return the quantization_config of config.json, as transformers and vLLM read it.

        Args:
            scheme: Of all grids.
            kept: Parts of the names of what is not quantized, beside the output head.
            packed: Ends of the names of what is, where readers would not find it by themselves.
        """

    def scheme(self, settings: Mapping[str, Any]) -> Scheme | None:
        """Return what a quantization_config says of its grids; None where it is of another version of the layout."""

    def readers(self, settings: Mapping[str, Any]) -> Readers:
        """Return who loads weights with this quantization_config."""

    def slots(self, matrix: Matrix, scheme: Scheme) -> list[Slot]:
        """Return the tensors that a weight becomes."""

    def pack(self, grid: Grid, scheme: Scheme) -> dict[str, NDArray[Any]]:
        """Return what a layer's tensors hold, by the last part of their names."""

    def unpack(self, packed: Mapping[str, NDArray[Any]], scheme: Scheme) -> Grid:
        """Return the grid that pack() was given."""
