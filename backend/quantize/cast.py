"""Cast: the same weights in another floating-point type; no quantization, the baseline of the others."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from backend.models.rewriting import Dtype, StreamOptions, stream
from backend.quantize.method import Method, MethodOptions
from backend.quantize.readers import EVERYWHERE
from backend.weights.tensor import Tensor

READERS = EVERYWHERE
"""Who loads weights that are not quantized."""


class Options(MethodOptions, StreamOptions):
    """Another floating-point type."""

    method: Literal["cast"] = "cast"
    dtype: Dtype = Field(
        "bfloat16", description="bfloat16 keeps the range, float16 the digits; float32 doubles the size of both."
    )

    @property
    def target(self) -> str:
        """The type."""
        return self.dtype

    def config(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        """Name the type as transformers does, once."""
        return {"dtype": self.dtype, "torch_dtype": None}


METHOD = Method(
    Options,
    "Cast · 16 or 32 bit",
    "The same weights in another floating-point type, without quantization.",
    stream,
)
