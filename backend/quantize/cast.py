"""Cast: the same weights in another floating-point type; no quantization, the baseline of the others."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from backend.models.facts import ModelFacts, Tensor
from backend.options import Frozen
from backend.progress import Report
from backend.quantize.bitsandbytes import Dtype
from backend.quantize.streaming import Plain, Source, stream, write_config

TITLE = "Cast · 16 or 32 bit"
SUMMARY = "The same weights in another floating-point type, without quantization."


class Options(Frozen):
    """Another floating-point type."""

    stage: Literal["quantize"] = "quantize"
    method: Literal["cast"] = "cast"
    dtype: Dtype = Field(
        "bfloat16", description="bfloat16 keeps the range, float16 the digits; float32 doubles the size of both."
    )

    def check(self, facts: ModelFacts) -> None:
        """Every model can be cast."""

    def tensor_bytes(self, tensor: Tensor) -> int:
        """Give the bytes of a tensor in the result."""
        return tensor.elements * (4 if self.dtype == "float32" else 2)


def quantize(source: Path, output: Path, options: Options, report: Report) -> None:
    """Write `source` in another type to the empty folder `output`; warn of weights that float16 cannot hold."""
    overflow = _Overflow()
    stream(source, output, overflow, options.dtype, report)
    write_config(source, output, {"dtype": options.dtype, "torch_dtype": None})
    if overflow.count:
        report.warn(
            f"{overflow.count} weights exceed {np.finfo(np.float16).max:.0f}, the largest float16, and became infinite,"
            f" the first in '{overflow.first}': choose bfloat16."
        )


class _Overflow(Plain):
    """Counts what became infinite."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def look(self, source: Source, raw: Any) -> None:
        if source.dtype == "F16" and (over := int(np.isinf(raw.view(np.float16)).sum())):
            self.count, self.first = self.count + over, self.first or source.name
