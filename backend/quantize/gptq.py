"""GPTQ: integers with error feedback (arXiv 2210.17323), in the layout of AutoGPTQ, version 1.

`qweight` packs integers along the inputs, `qzeros` the zeros less one along the outputs; `scales` are float16 and
`g_idx` names the group of each input (github.com/AutoGPTQ/AutoGPTQ, qlinear_cuda_old.py; vLLM reads it).
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from backend.options import ADVANCED
from backend.progress import Report
from backend.quantize.calibrated.options import CalibratedOptions, Grid
from backend.quantize.calibrated.packing import pack_rows, unpack_rows
from backend.quantize.calibrated.windows import Windows
from backend.weights.checkpoint import Weights
from backend.weights.output import Output
from backend.weights.view import View
from backend.weights.writer import Slot

TITLE = "GPTQ · 2 to 8 bit"
SUMMARY = "Calibrated on text: loses far less than NF4 at the same size, and vLLM runs it fast. Takes minutes."


SERVED = ((4, True, False), (8, True, False))
"""Bits, sym and desc_act that vLLM 0.32 takes."""


class Options(CalibratedOptions):
    """Names and defaults are AutoGPTQ's."""

    method: Literal["gptq"] = "gptq"
    sym: bool = Field(
        True, description="Zeros in the middle of the grid: vLLM serves no others. Off: a little better, as awq is too."
    )
    desc_act: bool = Field(
        False,
        description="Make groups of inputs that are used about as strongly. vLLM no longer serves such, and it gains"
        " little: inputs are rounded in that order anyway.",
        json_schema_extra=ADVANCED,
    )

    @property
    def symmetric(self) -> bool:
        """Whether all zeros lie in the middle of the grid."""
        return self.sym

    @property
    def lowest(self) -> int:
        """A zero of 0 is stored as -1, which readers disagree on."""
        return 1

    @property
    def reordered(self) -> bool:
        """Whether groups are made of inputs in the order of how strongly they are used."""
        return self.desc_act

    def config(self) -> dict[str, Any]:
        """Give what changes in config.json, as GPTQConfig and vLLM read it."""
        return {
            "quantization_config": {
                "quant_method": "gptq",
                "bits": self.bits,
                "group_size": self.group_size,
                "desc_act": self.desc_act,
                "sym": self.sym,
                "damp_percent": self.damp_percent,
                "lm_head": False,
                "true_sequential": False,
                "static_groups": False,
                "checkpoint_format": "gptq",
            }
        }

    def slots(self, view: View) -> list[Slot]:
        """Give the tensors that a weight becomes, named as AutoGPTQ names them."""
        outputs, inputs = view.shape
        base, groups = view.name.removesuffix("weight"), inputs // self.group(inputs)
        return [
            Slot(base + "qweight", "I32", (inputs * self.bits // 32, outputs)),
            Slot(base + "qzeros", "I32", (groups, outputs * self.bits // 32)),
            Slot(base + "g_idx", "I32", (inputs,)),
            Slot(base + "scales", "F16", (groups, outputs)),
        ]

    def pack(self, grid: Grid) -> dict[str, NDArray[Any]]:
        """Give what a layer's tensors hold."""
        return {
            "qweight": pack_rows(np.ascontiguousarray(grid.q.T), self.bits),
            "qzeros": np.ascontiguousarray(pack_rows(grid.zeros - np.uint8(1), self.bits).T),
            "g_idx": grid.g_idx,
            "scales": np.ascontiguousarray(grid.scales.T).astype(np.float16),
        }

    def unpack(self, packed: Mapping[str, NDArray[Any]]) -> Grid:
        """Give the grid that pack() was given."""
        return Grid(
            np.ascontiguousarray(unpack_rows(packed["qweight"], self.bits).T),
            np.ascontiguousarray(packed["scales"].T).astype(np.float32),
            unpack_rows(np.ascontiguousarray(packed["qzeros"].T), self.bits) + np.uint8(1),
            packed["g_idx"],
        )


def quantize(weights: Weights, output: Output, options: Options, windows: Windows, report: Report) -> None:
    """Write a model as a GPTQ model."""
    from backend.quantize.calibrated.engine import quantize_blocks

    quantize_blocks(weights, output, options, windows, report)
    if (options.bits, options.sym, options.desc_act) not in SERVED:
        report.warn(
            "vLLM serves GPTQ in 4 and 8 bits with sym and without desc_act alone: this folder loads in transformers"
            " with the packages gptqmodel and optimum."
        )
