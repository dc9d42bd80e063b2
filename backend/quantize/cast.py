"""Cast: the same weights in another floating-point type; no quantization, the baseline of the others."""

from typing import Any, Literal

from pydantic import Field

from backend.models.facts import ModelFacts
from backend.models.rewriting import Dtype, StreamOptions, stream
from backend.progress import Report
from backend.weights.checkpoint import Weights
from backend.weights.output import Output

TITLE = "Cast · 16 or 32 bit"
SUMMARY = "The same weights in another floating-point type, without quantization."


class Options(StreamOptions):
    """Another floating-point type."""

    makes = "quantized"
    stage: Literal["quantize"] = "quantize"
    method: Literal["cast"] = "cast"
    dtype: Dtype = Field(
        "bfloat16", description="bfloat16 keeps the range, float16 the digits; float32 doubles the size of both."
    )

    def check(self, facts: ModelFacts) -> None:
        """Every model can be cast."""

    @property
    def target(self) -> str:
        """The type."""
        return self.dtype

    def config(self) -> dict[str, Any]:
        """Name the type as transformers does, once."""
        return {"dtype": self.dtype, "torch_dtype": None}


def quantize(weights: Weights, output: Output, options: Options, report: Report) -> None:
    """Write a model in another type."""
    stream(weights, output, options, report)
