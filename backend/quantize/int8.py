"""LLM.int8(): 8-bit rows with 16-bit outlier columns (arXiv 2208.07339), as bitsandbytes stores it."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from backend.models.facts import Tensor
from backend.progress import Report
from backend.quantize.bitsandbytes import ADVANCED, BitsAndBytesOptions, save_quantized

TITLE = "INT8 · 8 bit"
SUMMARY = "Half the size with next to no loss. Slower than 16 bit on most GPUs."


class Options(BitsAndBytesOptions):
    """LLM.int8(); names and defaults are BitsAndBytesConfig's."""

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

    def tensor_bytes(self, tensor: Tensor) -> int:
        """Give the bytes of a tensor in the result: 8 bits an element, a float32 scale for each row."""
        return tensor.bytes if self.skips(tensor) else tensor.elements + 4 * tensor.shape[0] + 1


def quantize(source: Path, output: Path, options: Options, report: Report) -> None:
    """Write `source` as an LLM.int8() model to the empty folder `output`."""
    config = {
        "load_in_8bit": True,
        "llm_int8_threshold": options.llm_int8_threshold,
        "llm_int8_skip_modules": options.skip_modules(),
    }
    save_quantized(source, output, config, report)
    if options.llm_int8_enable_fp32_cpu_offload:
        _allow_offload(output / "config.json")


def _allow_offload(path: Path) -> None:
    """Set the flag afterwards: set while quantizing on a CPU, it would leave every module unquantized."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"]["llm_int8_enable_fp32_cpu_offload"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
