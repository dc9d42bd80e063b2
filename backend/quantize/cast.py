"""Cast: the same weights in another floating-point type; no quantization, the baseline of the others."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from backend.options import Frozen
from backend.progress import Report
from backend.quantize.bitsandbytes import Dtype

TITLE = "Cast · 16 or 32 bit"
SUMMARY = "The same weights in another floating-point type, without quantization."


class Options(Frozen):
    """Another floating-point type."""

    stage: Literal["quantize"] = "quantize"
    method: Literal["cast"] = "cast"
    dtype: Dtype = Field(
        "bfloat16", description="bfloat16 keeps the range, float16 the digits; float32 doubles the size of both."
    )
