"""W8A8: weights and inputs of linear layers as 8-bit integers (SmoothQuant, arXiv 2211.10438)."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from backend.quantize.calibrated.engine import quantize_blocks
from backend.quantize.calibrated.numbers import Numbers
from backend.quantize.calibrated.options import RoundedInputsOptions
from backend.quantize.input_rounding import to_integers
from backend.quantize.layouts import int_quantized
from backend.quantize.layouts.layout import Layout
from backend.quantize.method import Method


class Options(RoundedInputsOptions):
    """As the other calibrated methods'; the kernels that compute in 8 bits decide the rest."""

    method: Literal["w8a8"] = "w8a8"
    bits: Literal[8] = Field(8, description="Bits a weight: the kernels multiply 8.")
    group_size: Literal[-1] = Field(-1, description="Inputs that share a scale: all of a row.")

    @property
    def written(self) -> Layout:
        """The layout."""
        return int_quantized

    @property
    def numbers(self) -> Numbers:
        """Which integers and scales its grids may hold."""
        return Numbers(255, int_quantized.LOWEST, signed=False)

    @property
    def rounds_inputs(self) -> Callable[[Any], Any]:
        """What rounds the inputs of a layer while it is computed."""
        return to_integers


METHOD = Method(
    Options,
    "W8A8 · 8 bit",
    "Computes in 8-bit integers: half the size of 16 bit, and much faster where many requests are answered at once.",
    quantize_blocks,
)
