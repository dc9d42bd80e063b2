"""The layout of AutoAWQ's GEMM kernel.

`qweight` and `qzeros` pack eight neighboring outputs a word, interleaved; `scales` are float16
(github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py; read by vLLM and transformers).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.quantize.layouts.layout import Grid, Matrix, Scheme
from backend.quantize.layouts.packing import pack_interleaved, unpack_interleaved
from backend.quantize.readers import EVERYWHERE, UNREAD, Readers, Reading
from backend.weights.writer import Slot

BITS: tuple[int, ...] = (4,)
LOWEST = 0
TURNED = True
TENSORS: tuple[str, ...] = ("qweight", "qzeros", "scales")


def config(scheme: Scheme, kept: Sequence[str] = (), packed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config, as AwqConfig and vLLM read it."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": True,
        "modules_to_not_convert": list(kept) or None,
    }


def scheme(settings: Mapping[str, Any]) -> Scheme | None:
    """Return what a quantization_config says of its grids; None for the layouts of other kernels."""
    version = str(settings.get("checkpoint_format") or settings.get("version") or "gemm").lower()
    held = version in ("gemm", "awq") and settings.get("bits") in BITS
    return Scheme(settings["bits"], symmetric=False) if held else None


def readers(settings: Mapping[str, Any]) -> Readers:
    """Return who loads it: vLLM's auto_awq with Marlin, on a CPU with CPUWNA16; llama.cpp's converter does not."""
    return EVERYWHERE | {
        "transformers": Reading(packages=("gptqmodel",), experts=UNREAD.format("awq"), apt=False),
        "vllm": Reading(capability=7.5),
        "llama.cpp": Reading("llama.cpp does not convert AWQ's layout"),
    }


def slots(matrix: Matrix, scheme: Scheme) -> list[Slot]:
    """Return the tensors that a weight becomes, named as AutoAWQ names them."""
    outputs, inputs = matrix.shape
    base, groups = matrix.name.removesuffix("weight"), scheme.groups(inputs)
    return [
        Slot(base + "qweight", "I32", (inputs, outputs // 8)),
        Slot(base + "qzeros", "I32", (groups, outputs // 8)),
        Slot(base + "scales", "F16", (groups, outputs)),
    ]


def pack(grid: Grid, scheme: Scheme) -> dict[str, NDArray[Any]]:
    """Return what a layer's tensors hold."""
    return {
        "qweight": pack_interleaved(np.ascontiguousarray(grid.q.T)),
        "qzeros": pack_interleaved(np.ascontiguousarray(grid.zeros.T)),
        "scales": np.ascontiguousarray(grid.scales.T).astype(np.float16),
    }


def unpack(packed: Mapping[str, NDArray[Any]], scheme: Scheme) -> Grid:
    """Return the grid that pack() was given."""
    inputs, groups = len(packed["qweight"]), len(packed["scales"])
    return Grid(
        np.ascontiguousarray(unpack_interleaved(packed["qweight"]).T),
        np.ascontiguousarray(packed["scales"].T).astype(np.float32),
        np.ascontiguousarray(unpack_interleaved(packed["qzeros"]).T),
        (np.arange(inputs) // (inputs // groups)).astype(np.int32),
    )
