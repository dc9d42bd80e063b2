"""AWQ: input channels scaled by how strongly they are used (arXiv 2306.00978), in the layout of AutoAWQ's GEMM kernel.

`qweight` and `qzeros` pack eight neighbouring outputs a word, interleaved; `scales` are float16
(github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py; read by vLLM and transformers).
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from backend.progress import Report
from backend.quantize.calibrated.options import CalibratedOptions, Grid
from backend.quantize.calibrated.packing import pack_interleaved, unpack_interleaved
from backend.quantize.calibrated.windows import Windows
from backend.weights.checkpoint import Weights
from backend.weights.output import Output
from backend.weights.view import View
from backend.weights.writer import Slot

TITLE = "AWQ · 4 bit"
SUMMARY = "As GPTQ, with zero points, in the layout that most servers read. Takes minutes."

_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
_FIXED = {"zero_point": (True, "the layout has zero points"), "version": ("gemm", "gemm is the layout that is written")}


class Options(CalibratedOptions):
    """Defaults are AutoAWQ's; its own names w_bit, q_group_size, zero_point and version are understood too."""

    method: Literal["awq"] = "awq"
    bits: Literal[4] = Field(4, description="Bits a weight: the layout holds 4.")

    @model_validator(mode="before")
    @classmethod
    def _understand_autoawq(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, (value, why) in _FIXED.items():
            given = data.get(name, value)
            if (given.lower() if isinstance(given, str) else given) != value:
                raise ValueError(f"{name}: must be {value}: {why}; choose method gptq for others")
        for name, ours in _NAMES.items():
            if name in data and ours in data:
                raise ValueError(f"{name}: is another name of {ours}: give one of them")
        found = {_NAMES.get(name, name): value for name, value in data.items() if name not in _FIXED}
        if str(found.get("bits", 4)) != "4":
            raise ValueError(f"bits: AWQ's layout holds 4, not {found['bits']}: choose method gptq for other widths")
        return found

    def config(self) -> dict[str, Any]:
        """Give what changes in config.json, as AwqConfig and vLLM read it."""
        return {
            "quantization_config": {
                "quant_method": "awq",
                "version": "gemm",
                "bits": self.bits,
                "group_size": self.group_size,
                "zero_point": True,
                "modules_to_not_convert": None,
            }
        }

    def slots(self, view: View) -> list[Slot]:
        """Give the tensors that a weight becomes, named as AutoAWQ names them."""
        outputs, inputs = view.shape
        base, groups = view.name.removesuffix("weight"), inputs // self.group(inputs)
        return [
            Slot(base + "qweight", "I32", (inputs, outputs // 8)),
            Slot(base + "qzeros", "I32", (groups, outputs // 8)),
            Slot(base + "scales", "F16", (groups, outputs)),
        ]

    def pack(self, grid: Grid) -> dict[str, NDArray[Any]]:
        """Give what a layer's tensors hold."""
        return {
            "qweight": pack_interleaved(np.ascontiguousarray(grid.q.T)),
            "qzeros": pack_interleaved(np.ascontiguousarray(grid.zeros.T)),
            "scales": np.ascontiguousarray(grid.scales.T).astype(np.float16),
        }

    def unpack(self, packed: Mapping[str, NDArray[Any]]) -> Grid:
        """Give the grid that pack() was given."""
        inputs, groups = len(packed["qweight"]), len(packed["scales"])
        return Grid(
            np.ascontiguousarray(unpack_interleaved(packed["qweight"]).T),
            np.ascontiguousarray(packed["scales"].T).astype(np.float32),
            np.ascontiguousarray(unpack_interleaved(packed["qzeros"]).T),
            (np.arange(inputs) // (inputs // groups)).astype(np.int32),
        )


def quantize(weights: Weights, output: Output, options: Options, windows: Windows, report: Report) -> None:
    """Write a model as an AWQ model."""
    from backend.quantize.calibrated.engine import quantize_blocks

    quantize_blocks(weights, output, options, windows, report)
