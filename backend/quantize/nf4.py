"""NF4: 4-bit NormalFloat in blocks of 64 (QLoRA, arXiv 2305.14314), as bitsandbytes stores it."""

from typing import Literal

from backend.models.rewriting import stream
from backend.progress import Report
from backend.quantize.bitsandbytes import FourBitOptions
from backend.weights.checkpoint import Weights
from backend.weights.output import Output

TITLE = "NF4 · 4 bit"
SUMMARY = "A quarter of the size, on a grid made for the weights of language models. Needs no calibration data."


class Options(FourBitOptions):
    """4-bit NormalFloat."""

    method: Literal["nf4"] = "nf4"


def quantize(weights: Weights, output: Output, options: Options, report: Report) -> None:
    """Write a model as an NF4 model."""
    stream(weights, output, options, report)
