"""The layout int-quantized of compressed-tensors: a byte for each weight and a scale for each row.

While they are computed the inputs of the layers are rounded to 8 bits too, a scale for each token, of which nothing
is stored (compressors/naive_quantized of the package; read by vLLM, SGLang and transformers).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.quantize import compressed_tensors
from backend.quantize.layouts.layout import Grid, Matrix, Scheme
from backend.weights.floats import Bytes, from_float32, to_float32
from backend.weights.writer import Slot

BITS: tuple[int, ...] = (8,)
LOWEST = 128  # what is stored is signed, and has no zero but 0
TURNED = False  # its target is the class Linear
TENSORS: tuple[str, ...] = ("weight", "weight_scale")

FORMAT = "int-quantized"

readers = compressed_tensors.readers


def config(scheme: Scheme, kept: Sequence[str] = (), packed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config, as vLLM and transformers read it."""
    activations = {"strategy": "token", "dynamic": True}
    return compressed_tensors.quantization_config(FORMAT, {"strategy": "channel"}, kept, activations)


def scheme(settings: Mapping[str, Any]) -> Scheme | None:
    """Return what a quantization_config says of its grids; None for other formats."""
    return Scheme(8) if settings.get("format") == FORMAT else None


def slots(matrix: Matrix, scheme: Scheme) -> list[Slot]:
    """Return the tensors that a weight becomes, named as the package names them."""
    return [Slot(matrix.name, "I8", matrix.shape), Slot(f"{matrix.name}_scale", scheme.dtype, (matrix.shape[0], 1))]


def pack(grid: Grid, scheme: Scheme) -> dict[str, NDArray[Any]]:
    """Return what a layer's tensors hold."""
    return {
        "weight": (grid.q ^ np.uint8(LOWEST)).view(np.int8),
        "weight_scale": from_float32(grid.scales, scheme.dtype),
    }


def unpack(packed: Mapping[str, NDArray[Any]], scheme: Scheme) -> Grid:
    """Return the grid that pack() was given."""
    raw: Bytes = packed["weight_scale"].reshape(-1).view(np.uint8)
    scales = to_float32(raw, scheme.dtype).reshape(-1, 1)
    q = packed["weight"].view(np.uint8) ^ np.uint8(LOWEST)
    return Grid(q, scales, np.full(scales.shape, LOWEST, np.uint8), np.zeros(q.shape[1], np.int32))
