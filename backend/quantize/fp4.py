"""FP4: 4-bit floating point (E2M1) in blocks of 64, as bitsandbytes stores it."""

from typing import Literal

from backend.models.rewriting import stream
from backend.progress import Report
from backend.quantize.bitsandbytes import FourBitOptions
from backend.weights.checkpoint import Weights
from backend.weights.output import Output

TITLE = "FP4 · 4 bit"
SUMMARY = "A quarter of the size, on a floating-point grid. NF4 loses less on most models."


class Options(FourBitOptions):
    """4-bit floating point."""

    method: Literal["fp4"] = "fp4"


def quantize(weights: Weights, output: Output, options: Options, report: Report) -> None:
    """Write a model as an FP4 model."""
    stream(weights, output, options, report)
