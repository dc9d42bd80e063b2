"""NF4: 4-bit NormalFloat in blocks of 64 (QLoRA, arXiv 2305.14314), as bitsandbytes stores it."""

from pathlib import Path
from typing import Literal

from backend.progress import Report
from backend.quantize.bitsandbytes import FourBitOptions, save_quantized

TITLE = "NF4 · 4 bit"
SUMMARY = "A quarter of the size, on a grid made for the weights of language models. Needs no calibration data."


class Options(FourBitOptions):
    """4-bit NormalFloat."""

    method: Literal["nf4"] = "nf4"


def quantize(source: Path, output: Path, options: Options, report: Report) -> None:
    """Write `source` as an NF4 model to the empty folder `output`."""
    save_quantized(source, output, options, report)
