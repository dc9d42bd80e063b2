"""A toy method: all that calibrated quantization does, in a layout that anybody can read."""

from typing import Literal

from pydantic import Field

from backend.quantize.calibrated.engine import quantize_blocks
from backend.quantize.calibrated.options import CalibratedOptions, LayoutName
from backend.quantize.method import Method


class Options(CalibratedOptions):
    """As GPTQ's, with zeros anywhere and another usual width."""

    method: Literal["toy"] = "toy"
    layout: LayoutName = Field("plain", description=CalibratedOptions.model_fields["layout"].description)
    bits: Literal[2, 3, 4, 8] = Field(8, description="Bits that are used of the byte that each weight takes.")


METHOD = Method(Options, "Toy · 8 bit", "A byte a weight, to look at.", quantize_blocks)
