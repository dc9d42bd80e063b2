"""LLM.int8(): 8-bit rows with 16-bit outlier columns (arXiv 2208.07339), as bitsandbytes stores it."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from backend.errors import SpecError
from backend.models.rewriting import stream
from backend.options import ADVANCED
from backend.quantize.bitsandbytes import BitsAndBytesOptions
from backend.quantize.method import Method
from backend.weights.floats import Bytes, cast
from backend.weights.kernels import quantize_rows
from backend.weights.plan import Memory
from backend.weights.view import Source, View
from backend.weights.writer import Slot, Writer


class Options(BitsAndBytesOptions):
    """LLM.int8(); names and defaults are BitsAndBytesConfig's."""

    UNFIT = ("kv_b_proj",)  # gets four dimensions, of which bitsandbytes 0.50 gives two back

    method: Literal["int8"] = "int8"
    llm_int8_threshold: float = Field(
        6.0,
        ge=0,
        le=1000,
        description="Activations above this are computed in 16 bit. Lower: more exact and slower. 0: all in 8 bit.",
    )
    llm_int8_enable_fp32_cpu_offload: bool = Field(
        False,
        description="Whoever loads the result on a small GPU may leave parts on the CPU in float32. It then loads only"
        " where there is a GPU.",
        json_schema_extra=ADVANCED,
    )
    llm_int8_has_fp16_weight: bool = Field(
        False,
        description="Keep 16-bit main weights, for training. A saved model has either 8-bit weights or these.",
        json_schema_extra=ADVANCED,
    )

    @field_validator("llm_int8_has_fp16_weight")
    @classmethod
    def _either_8_bit_or_16_bit_weights(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "keeps the weights in 16 bit, which excludes saving them in 8 bit, and transformers cannot load such"
                " a folder again: leave it off, or choose method cast"
            )
        return value

    def quantization_config(self) -> dict[str, Any]:
        """Return what differs from BitsAndBytesConfig's defaults."""
        return {
            "_load_in_8bit": True,
            "load_in_8bit": True,
            "llm_int8_threshold": self.llm_int8_threshold,
            "llm_int8_enable_fp32_cpu_offload": self.llm_int8_enable_fp32_cpu_offload,
        }

    def slots(self, view: View) -> list[Slot]:
        """Return the tensors that a weight becomes, named as bitsandbytes names them."""
        base = view.name.removesuffix("weight")
        return [
            Slot(view.name, "I8", view.shape),
            Slot(base + "SCB", "F32", view.shape[:1]),
            Slot(base + "weight_format", "U8", ()),
        ]

    def memory(self, view: View) -> Memory:
        """A float16 copy of what is none, by way of float32, and the byte that it becomes."""
        return Memory(1 if view.dtype == "F16" else 2 + 1 + 4 * (view.dtype != "F32"), 0)

    def write(self, source: Source, writer: Writer) -> None:
        """Quantize a weight, some rows at a time."""
        base, (_, columns) = source.name.removesuffix("weight"), source.shape

        def piece(first: int, raw: Bytes) -> None:
            rows = cast(raw, source.dtype, "F16").view(np.float16).reshape(-1, columns)
            quantized, scale = quantize_rows(rows)
            if not np.isfinite(scale).all():
                raise SpecError(
                    f"'{source.name}' has weights that float16, through which int8 goes, cannot hold: choose nf4."
                )
            writer.write(source.name, quantized, first)
            writer.write(base + "SCB", scale, 4 * (first // columns))

        source.each(piece, columns)
        writer.write(base + "weight_format", bytes(1))  # row-major, the only layout of a CPU


METHOD = Method(
    Options,
    "INT8 · 8 bit",
    "For tuning and transformers: half the size with next to no loss, slower than 16 bit on most GPUs.",
    stream,
)
