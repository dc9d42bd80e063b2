"""The layout of AutoGPTQ, version 1.

`qweight` packs integers along the inputs, `qzeros` the zeros less one along the outputs; `scales` are float16 and
`g_idx` names the group of each input (github.com/AutoGPTQ/AutoGPTQ, qlinear_cuda_old.py; vLLM reads it).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.quantize.layouts.layout import Grid, Matrix, Scheme
from backend.quantize.layouts.packing import WORD, pack_rows, unpack_rows
from backend.quantize.readers import EVERYWHERE, UNREAD, Readers, Reading
from backend.weights.writer import Slot

BITS: tuple[int, ...] = (2, 3, 4, 8)
LOWEST = 1  # a zero of 0 is stored as -1, which readers disagree on
TURNED = True
TENSORS: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")

SERVED = ((4, True, False), (8, True, False))
"""Bits, sym and desc_act that vLLM takes without a flag, and SGLang is known to."""


def config(scheme: Scheme, kept: Sequence[str] = (), packed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config, as GPTQConfig and vLLM read it."""
    found: dict[str, Any] = {"dynamic": {f"-:.*{re.escape(name)}": {} for name in kept}} if kept else {}
    if packed:
        found["modules_in_block_to_quantize"] = [list(packed)]
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "desc_act": scheme.reordered,
        "sym": scheme.symmetric,
        "damp_percent": scheme.damp_percent,
        "lm_head": False,
        "true_sequential": False,
        "static_groups": False,
        "checkpoint_format": "gptq",
        **found,
    }


def scheme(settings: Mapping[str, Any]) -> Scheme | None:
    """Return what a quantization_config says of its grids; None for version 2, whose zeros are not less by one."""
    version = str(settings.get("checkpoint_format") or settings.get("version") or "gptq").lower()
    return Scheme(settings["bits"]) if version == "gptq" and settings.get("bits") in BITS else None


def readers(settings: Mapping[str, Any]) -> Readers:
    """Return who loads it: of vLLM auto_gptq, whose Marlin kernels take 4 and 8 bits on a GPU, and 4 on a CPU."""
    bits = settings.get("bits")
    served = (bits, bool(settings.get("sym", True)), bool(settings.get("desc_act"))) in SERVED
    limits = "serves GPTQ in 4 and 8 bits with sym and without desc_act alone"
    on_cpu = Reading() if bits == 4 else Reading("Without a GPU, vLLM serves GPTQ in 4 bits alone")
    return EVERYWHERE | {
        "transformers": Reading(packages=("gptqmodel", "optimum"), experts=UNREAD.format("gptq"), apt=False),
        "vllm": Reading(capability=7.5) if served else Reading(f"vLLM {limits}"),
        "vllm-cpu": on_cpu if served else Reading(f"vLLM {limits}"),
        "sglang": Reading() if served else Reading(f"SGLang {limits}"),
    }


def slots(matrix: Matrix, scheme: Scheme) -> list[Slot]:
    """Return the tensors that a weight becomes, named as AutoGPTQ names them."""
    outputs, inputs = matrix.shape
    base, groups = matrix.name.removesuffix("weight"), scheme.groups(inputs)
    return [
        Slot(base + "qweight", "I32", (inputs * scheme.bits // WORD, outputs)),
        Slot(base + "qzeros", "I32", (groups, outputs * scheme.bits // WORD)),
        Slot(base + "g_idx", "I32", (inputs,)),
        Slot(base + "scales", "F16", (groups, outputs)),
    ]


def pack(grid: Grid, scheme: Scheme) -> dict[str, NDArray[Any]]:
    """Return what a layer's tensors hold."""
    return {
        "qweight": pack_rows(np.ascontiguousarray(grid.q.T), scheme.bits),
        "qzeros": np.ascontiguousarray(pack_rows(grid.zeros - np.uint8(1), scheme.bits).T),
        "g_idx": grid.g_idx,
        "scales": np.ascontiguousarray(grid.scales.T).astype(np.float16),
    }


def unpack(packed: Mapping[str, NDArray[Any]], scheme: Scheme) -> Grid:
    """Return the grid that pack() was given."""
    return Grid(
        np.ascontiguousarray(unpack_rows(packed["qweight"], scheme.bits).T),
        np.ascontiguousarray(packed["scales"].T).astype(np.float32),
        unpack_rows(np.ascontiguousarray(packed["qzeros"].T), scheme.bits) + np.uint8(1),
        packed["g_idx"],
    )
