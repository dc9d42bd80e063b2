"""FP4: 4-bit floating point (E2M1) in blocks of 64, as bitsandbytes stores it."""

from pathlib import Path
from typing import Literal

from backend.progress import Report
from backend.quantize.bitsandbytes import FourBitOptions, save_quantized

TITLE = "FP4 · 4 bit"
SUMMARY = "A quarter of the size, on a floating-point grid. NF4 loses less on most models."


class Options(FourBitOptions):
    """4-bit floating point."""

    method: Literal["fp4"] = "fp4"


def quantize(source: Path, output: Path, options: Options, report: Report) -> None:
    """Write `source` as an FP4 model to the empty folder `output`."""
    save_quantized(source, output, options, report)
