"""The layout nvfp4-pack-quantized of compressed-tensors: 4-bit floats with a scale for each 16 of a row.

A float of the type F4 (E2M1) is a multiple of a half: a grid holds the halves, with the zero in its middle. Scales are
F8_E4M3 and are divided by one number of the layer. The inputs are rounded to such floats while they are computed, for
which what calibration saw of them gives the layer's number (compressors/nvfp4 of the package; vLLM reads it).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.quantize import compressed_tensors
from backend.quantize.layouts.layout import Grid, Matrix, Scheme
from backend.weights.floats import to_float32
from backend.weights.writer import Slot

BITS: tuple[int, ...] = (4,)
LOWEST = 12  # halves of 6, the largest float: the zero of every grid
TURNED = False  # its target is the class Linear
TENSORS: tuple[str, ...] = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")

FORMAT = "nvfp4-pack-quantized"

readers = compressed_tensors.readers

GROUP = 16
"""Inputs that share a scale."""

FULL = 448 * 6
"""The largest scale times the largest float."""

_HALVES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int16)
"""Of the floats without a sign, by their codes; those below zero have the codes from 8 on."""

_CODES = np.zeros(2 * LOWEST + 1, np.uint8)
_CODES[LOWEST + _HALVES] = np.arange(8)
_CODES[LOWEST - _HALVES[1:]] = np.arange(9, 16)

_NUMBERS = np.concatenate([LOWEST + _HALVES, LOWEST - _HALVES]).astype(np.uint8)

_SCALES = to_float32(np.arange(127, dtype=np.uint8), "F8_E4M3")
"""What each byte of a scale stands for, in ascending order."""

_FLOATS: Mapping[str, Any] = {
    "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": GROUP,
    "scale_dtype": "torch.float8_e4m3fn",
}  # fmt: skip


def config(scheme: Scheme, kept: Sequence[str] = (), packed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config, as vLLM and transformers read it."""
    return compressed_tensors.quantization_config(FORMAT, _FLOATS, kept, {**_FLOATS, "dynamic": "local"})


def scheme(settings: Mapping[str, Any]) -> Scheme | None:
    """Return what a quantization_config says of its grids; None for other formats."""
    return Scheme(4, GROUP) if settings.get("format") == FORMAT else None


def slots(matrix: Matrix, scheme: Scheme) -> list[Slot]:
    """Return the tensors that a weight becomes, named as the package names them."""
    (outputs, inputs), base = matrix.shape, matrix.name.removesuffix("weight")
    return [
        Slot(f"{matrix.name}_packed", "U8", (outputs, inputs // 2)),
        Slot(f"{matrix.name}_scale", "F8_E4M3", (outputs, inputs // GROUP)),
        Slot(f"{matrix.name}_global_scale", "F32", (1,)),
        Slot(f"{base}input_global_scale", "F32", (1,)),
    ]


def pack(grid: Grid, scheme: Scheme) -> dict[str, NDArray[Any]]:
    """Return what a layer's tensors hold; the scale of floats is twice that of halves."""
    codes = _CODES[grid.q]
    between = (_SCALES[1:] + _SCALES[:-1]) / 2
    return {
        "weight_packed": codes[:, 0::2] | codes[:, 1::2] << 4,
        "weight_scale": np.searchsorted(between, grid.scales * np.float32(2 * grid.unit)).astype(np.uint8),
        "weight_global_scale": np.array([grid.unit], np.float32),
        "input_global_scale": np.array([FULL / grid.reach if grid.reach else 1.0], np.float32),
    }


def unpack(packed: Mapping[str, NDArray[Any]], scheme: Scheme) -> Grid:
    """Return the grid that pack() was given."""
    raw = packed["weight_packed"]
    q = np.stack([_NUMBERS[raw & 15], _NUMBERS[raw >> 4]], 2).reshape(len(raw), -1)
    unit = packed["weight_global_scale"][0]
    scales = _SCALES[packed["weight_scale"]] / (2 * unit)
    g_idx = np.arange(q.shape[1], dtype=np.int32) // np.int32(GROUP)
    reach = float(FULL / packed["input_global_scale"][0])
    return Grid(q, scales, np.full(scales.shape, LOWEST, np.uint8), g_idx, float(unit), reach)
