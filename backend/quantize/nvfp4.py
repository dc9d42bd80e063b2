"""NVFP4: weights and inputs of linear layers as 4-bit floats with two levels of scales, as Blackwell GPUs multiply."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from backend.quantize.calibrated.engine import quantize_blocks
from backend.quantize.calibrated.numbers import Halves, Numbers
from backend.quantize.calibrated.options import RoundedInputsOptions
from backend.quantize.input_rounding import to_floats
from backend.quantize.layouts import nvfp4
from backend.quantize.layouts.layout import Layout
from backend.quantize.method import Method


class Options(RoundedInputsOptions):
    """As the other calibrated methods'; the format decides the rest."""

    method: Literal["nvfp4"] = "nvfp4"
    bits: Literal[4] = Field(4, description="Bits a weight: a float of 4.")
    group_size: Literal[16] = Field(16, description="Inputs that share a scale.")

    @property
    def written(self) -> Layout:
        """The layout."""
        return nvfp4

    @property
    def numbers(self) -> Numbers:
        """Which integers and scales its grids may hold."""
        return Halves()

    @property
    def rounds_inputs(self) -> Callable[[Any], Any]:
        """What rounds the inputs of a layer while it is computed."""
        return to_floats


METHOD = Method(
    Options,
    "NVFP4 · 4 bit",
    "Computes in 4-bit floats on Blackwell GPUs, the fastest there; others only read its weights.",
    quantize_blocks,
)
