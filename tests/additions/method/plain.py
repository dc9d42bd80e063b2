"""A layout for the eyes: a byte for each integer and each zero, nothing packed, nothing turned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.quantize.layouts.layout import Grid, Matrix, Scheme
from backend.quantize.readers import EVERYWHERE, Readers, Reading
from backend.weights.writer import Slot

BITS: tuple[int, ...] = (2, 3, 4, 8)
LOWEST = 0
TURNED = True
TENSORS: tuple[str, ...] = ("codes", "zeros", "scales")


def config(scheme: Scheme, kept: Sequence[str] = (), packed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config."""
    return {"quant_method": "plain", "bits": scheme.bits, "group_size": scheme.group_size}


def scheme(settings: Mapping[str, Any]) -> Scheme | None:
    """Return what a quantization_config says of its grids."""
    return Scheme(settings["bits"], settings["group_size"], symmetric=False)


def readers(settings: Mapping[str, Any]) -> Readers:
    """Return who loads it: transformers with a package, and nobody else."""
    nobody = dict.fromkeys(EVERYWHERE, Reading("vLLM does not serve the layout plain"))
    return {**nobody, "transformers": Reading(packages=("toyquant",))}


def slots(matrix: Matrix, scheme: Scheme) -> list[Slot]:
    """Return the tensors that a weight becomes."""
    outputs, inputs = matrix.shape
    base, groups = matrix.name.removesuffix("weight"), scheme.groups(inputs)
    return [
        Slot(base + "codes", "U8", (outputs, inputs)),
        Slot(base + "zeros", "U8", (outputs, groups)),
        Slot(base + "scales", "F16", (outputs, groups)),
    ]


def pack(grid: Grid, scheme: Scheme) -> dict[str, NDArray[Any]]:
    """Return what a layer's tensors hold."""
    return {"codes": grid.q, "zeros": grid.zeros, "scales": grid.scales.astype(np.float16)}


def unpack(packed: Mapping[str, NDArray[Any]], scheme: Scheme) -> Grid:
    """Return the grid that pack() was given."""
    inputs, groups = packed["codes"].shape[1], packed["scales"].shape[1]
    g_idx = (np.arange(inputs) // (inputs // groups)).astype(np.int32)
    return Grid(packed["codes"], packed["scales"].astype(np.float32), packed["zeros"], g_idx)
