"""What nf4, fp4 and int8 share: options, and quantizing through transformers and bitsandbytes.

Packed layout: bitsandbytes' `Linear4bit` and `Linear8bitLt` as transformers saves them (QLoRA, arXiv 2305.14314;
LLM.int8(), arXiv 2208.07339).
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from backend.errors import SpecError
from backend.models.facts import ModelFacts, Tensor
from backend.models.loading import load_causal_lm
from backend.options import Frozen
from backend.progress import Report

Dtype = Literal["float32", "bfloat16", "float16"]

ADVANCED: dict[str, Any] = {"advanced": True}

BLOCK = 64  # elements that share a scale
NESTED_BLOCK = 256  # scales that share a scale of their own
STATE = 170  # bytes of the quant_state that describes a tensor, as JSON


class BitsAndBytesOptions(Frozen):
    """Names are BitsAndBytesConfig's; upstream uses the same skip list for 4 and 8 bit."""

    stage: Literal["quantize"] = "quantize"
    llm_int8_skip_modules: tuple[str, ...] | None = Field(
        None,
        description="Modules that stay in 16 bit, by name, such as lm_head. Empty: the output head, as upstream does.",
        json_schema_extra=ADVANCED,
    )

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model, before anything is downloaded.

        Raises:
            SpecError: A module to skip is not in the model; the model has no layer to quantize.
        """
        linears = [tensor for tensor in facts.tensors if tensor.is_linear]
        if not linears:
            raise SpecError(f"'{facts.model}' has no linear layers that could be quantized: choose another model.")
        names = {part for tensor in facts.tensors for part in tensor.name.split(".")} | {"lm_head"}
        for module in self.llm_int8_skip_modules or ():
            if not any(part in names for part in module.split(".")[-1:]):
                known = ", ".join(sorted({tensor.name.split(".")[-2] for tensor in linears}))
                text = f"'{module}' is no module of the model: choose among {known}"
                raise SpecError(f"llm_int8_skip_modules: {text}", {"llm_int8_skip_modules": text})

    def skips(self, tensor: Tensor) -> bool:
        """Whether a tensor stays as it is."""
        return not tensor.is_linear or any(m in tensor.name.split(".") for m in self.llm_int8_skip_modules or ())

    def skip_modules(self) -> list[str] | None:
        """The skip list as BitsAndBytesConfig wants it."""
        return list(self.llm_int8_skip_modules) if self.llm_int8_skip_modules else None


class FourBitOptions(BitsAndBytesOptions):
    """Names and defaults are BitsAndBytesConfig's, but for double quantization, which costs nothing and saves space."""

    bnb_4bit_use_double_quant: bool = Field(
        True, description="Quantize the scales too: 0.37 bit a parameter smaller, hardly any loss."
    )
    bnb_4bit_compute_dtype: Dtype = Field(
        "bfloat16",  # upstream's float32 makes every later use slower; bfloat16 is what its own guide advises
        description="The type that the weights are unpacked to for arithmetic: bfloat16 is fast, float32 exact.",
        json_schema_extra=ADVANCED,
    )

    def tensor_bytes(self, tensor: Tensor) -> int:
        """Give the bytes of a tensor in the result: 4 bits an element, a scale for each block of 64."""
        if self.skips(tensor):
            return tensor.bytes
        blocks = -(-tensor.elements // BLOCK)
        scales = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 * 256 if self.bnb_4bit_use_double_quant else 4 * blocks
        return -(-tensor.elements // 2) + scales + 4 * 16 + STATE

    def config(self, quant_type: Literal["nf4", "fp4"]) -> dict[str, Any]:
        """Keyword arguments of BitsAndBytesConfig."""
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": quant_type,
            "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            "bnb_4bit_compute_dtype": self.bnb_4bit_compute_dtype,
            "llm_int8_skip_modules": self.skip_modules(),
        }


def save_quantized(source: Path, output: Path, config: dict[str, Any], report: Report) -> None:
    """Quantize a model folder with bitsandbytes and write it as transformers does.

    Args:
        source: A folder with config.json and safetensors weights; 16- or 32-bit floats.
        output: An existing empty folder.
        config: Keyword arguments of transformers' BitsAndBytesConfig.
        report: Told the tensors done.
    """
    from transformers import BitsAndBytesConfig

    model = load_causal_lm(source, report, quantization_config=BitsAndBytesConfig(**config))
    report.progress("writing", 0, 1, "files")
    # A bitsandbytes model that was loaded from disk cannot be saved again: it is saved here, straight from quantizing.
    model.save_pretrained(output, max_shard_size="5GB")
    report.progress("writing", 1, 1, "files")
