"""The layout pack-quantized of compressed-tensors: integers of 2 to 8 bits, with a scale for each group or row.

`weight_packed` is a stream of bits along the inputs, the lowest first, and `weight_zero_point` one along the outputs;
half of the range is added to what is signed (compressors/pack_quantized of the package; read by vLLM and llama.cpp).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.quantize import compressed_tensors
from backend.quantize.layouts.layout import Grid, Matrix, Scheme
from backend.quantize.layouts.packing import WORD, pack_rows, unpack_rows
from backend.weights.floats import Bytes, from_float32, to_float32
from backend.weights.writer import Slot

BITS: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
LOWEST = 0
TURNED = False  # its target is the class Linear
TENSORS: tuple[str, ...] = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")

FORMAT = "pack-quantized"

readers = compressed_tensors.readers


def config(scheme: Scheme, kept: Sequence[str] = (), packed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config, as vLLM and transformers read it."""
    return compressed_tensors.quantization_config(FORMAT, arguments(scheme), kept)


def arguments(scheme: Scheme) -> dict[str, Any]:
    """Return how weights are quantized, in the package's words."""
    weights: dict[str, Any] = {"num_bits": scheme.bits, "symmetric": scheme.symmetric, "strategy": "channel"}
    if scheme.group_size > 0:
        weights |= {"strategy": "group", "group_size": scheme.group_size}
    return weights


def scheme(settings: Mapping[str, Any]) -> Scheme | None:
    """Return what a quantization_config says of its grids; None where layers have several, or others than integers."""
    groups = list((settings.get("config_groups") or {}).values())
    weights = groups[0]["weights"] if len(groups) == 1 and settings.get("format") == FORMAT else {}
    if weights.get("type") != "int" or weights.get("num_bits") not in BITS:
        return None
    return Scheme(weights["num_bits"], weights.get("group_size") or -1, symmetric=weights["symmetric"])


def slots(matrix: Matrix, scheme: Scheme) -> list[Slot]:
    """Return the tensors that a weight becomes, named as the package names them."""
    outputs, inputs = matrix.shape
    groups = scheme.groups(inputs)
    found = [
        Slot(f"{matrix.name}_packed", "I32", (outputs, inputs * scheme.bits // WORD)),
        Slot(f"{matrix.name}_scale", scheme.dtype, (outputs, groups)),
        Slot(f"{matrix.name}_shape", "I64", (2,)),
    ]
    zeros = Slot(f"{matrix.name}_zero_point", "I32", (outputs * scheme.bits // WORD, groups))
    return found if scheme.symmetric else [*found, zeros]


def pack(grid: Grid, scheme: Scheme) -> dict[str, NDArray[Any]]:
    """Return what a layer's tensors hold."""
    found: dict[str, NDArray[Any]] = {
        "weight_packed": np.ascontiguousarray(pack_rows(np.ascontiguousarray(grid.q.T), scheme.bits).T),
        "weight_scale": from_float32(grid.scales, scheme.dtype),
        "weight_shape": np.array(grid.q.shape, np.int64),
    }
    return found if scheme.symmetric else found | {"weight_zero_point": pack_rows(grid.zeros, scheme.bits)}


def unpack(packed: Mapping[str, NDArray[Any]], scheme: Scheme) -> Grid:
    """Return the grid that pack() was given."""
    q = np.ascontiguousarray(unpack_rows(np.ascontiguousarray(packed["weight_packed"].T), scheme.bits).T)
    outputs, inputs = q.shape
    raw: Bytes = packed["weight_scale"].reshape(-1).view(np.uint8)
    scales = to_float32(raw, scheme.dtype).reshape(outputs, -1)
    zeros = np.full(scales.shape, 1 << (scheme.bits - 1), np.uint8)
    if not scheme.symmetric:
        zeros = unpack_rows(packed["weight_zero_point"], scheme.bits)
    g_idx = np.arange(inputs, dtype=np.int32) // np.int32(inputs // scales.shape[1])
    return Grid(q, scales, zeros, g_idx)
