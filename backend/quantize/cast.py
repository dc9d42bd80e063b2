"""Cast: the same weights in another floating-point type; no quantization, the baseline of the others."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from backend.models.facts import ModelFacts, Tensor
from backend.models.loading import load_causal_lm
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

    def check(self, facts: ModelFacts) -> None:
        """Every model can be cast."""

    def tensor_bytes(self, tensor: Tensor) -> int:
        """Give the bytes of a tensor in the result."""
        return tensor.elements * (4 if self.dtype == "float32" else 2)


def quantize(source: Path, output: Path, options: Options, report: Report) -> None:
    """Write `source` in another type to the empty folder `output`; warn of weights that float16 cannot hold."""
    import torch

    dtype = getattr(torch, options.dtype)
    model = load_causal_lm(source, report)
    if dtype == torch.float16:
        _warn_of_overflow(model, report)
    model.to(dtype).save_pretrained(output, max_shard_size="5GB")


def _warn_of_overflow(model: Any, report: Report) -> None:
    import torch

    limit = torch.finfo(torch.float16).max
    over = {name: count for name, p in model.named_parameters() if (count := int((p.abs() > limit).sum()))}
    if over:
        report.warn(
            f"{sum(over.values())} weights exceed {limit:.0f}, the largest float16, and became infinite, the first in"
            f" '{next(iter(over))}': choose bfloat16."
        )
