"""What nf4, fp4 and int8 share: which layers they skip, and what config.json says; no torch, no bitsandbytes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.models.families import traits
from backend.models.rewriting import StreamOptions
from backend.options import ADVANCED
from backend.quantize.method import MethodOptions
from backend.quantize.one_by_one import OneByOne
from backend.quantize.readers import EVERYWHERE, Readers, Reading
from backend.weights.anatomy import HEADS, is_linear, kept
from backend.weights.tensor import Tensor

QUANT_METHOD = "bitsandbytes"


def readers(settings: Mapping[str, Any]) -> Readers:
    """Return who loads it: made for tuning in transformers, it left vLLM 0.28, and llama.cpp's converter refuses it."""
    return EVERYWHERE | {
        "transformers": Reading(packages=("bitsandbytes",)),
        "vllm": Reading("vLLM does not serve bitsandbytes"),
        "vllm-cpu": Reading("vLLM does not serve bitsandbytes"),
        "sglang": Reading(apt=False),
        "llama.cpp": Reading("llama.cpp does not convert bitsandbytes"),
    }


class BitsAndBytesOptions(MethodOptions, StreamOptions):
    """Names are BitsAndBytesConfig's; upstream uses the same skip list for 4 and 8 bit. The options are the Format."""

    UNFIT: ClassVar[tuple[str, ...]] = ()  # linear layers that bitsandbytes cannot compute, by the last part of names

    llm_int8_skip_modules: tuple[str, ...] | None = Field(
        None,
        description="Linear layers that stay in 16 bit, as the output head always does, by the last part of their"
        " names, such as down_proj.",
        json_schema_extra=ADVANCED,
    )

    def check(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model, before anything is downloaded.

        Raises:
            SpecError: A module to skip is not in the model; the model has no layer that can be quantized.
        """
        known = traits(facts.model_type)
        if not known.converted:
            raise SpecError(
                f"'{facts.model}' is of the type '{facts.model_type}', whose layers transformers does not load from"
                " bitsandbytes' formats: choose method cast, or another model."
            )
        linears = [tensor for tensor in facts.tensors if is_linear(tensor)]
        if not linears:
            raise SpecError(f"'{facts.model}' has no linear layers that could be quantized: choose another model.")
        whole = known.multiplied
        if whole and any(whole in tensor.name.split(".") for tensor in linears if not self.skips(tensor)):
            text = (
                f"a model of the type '{facts.model_type}' multiplies by the weight of '{whole}' itself: give {whole}"
            )
            raise SpecError(f"llm_int8_skip_modules: {text}", {"llm_int8_skip_modules": text})
        names = {tensor.name.split(".")[-2] for tensor in linears}
        for module in self.llm_int8_skip_modules or ():
            if module not in names | HEADS:  # a part of a path means other layers to each of those who read the result
                text = f"'{module}' is no linear layer of the model: choose among {', '.join(sorted(names))}"
                raise SpecError(f"llm_int8_skip_modules: {text}", {"llm_int8_skip_modules": text})

    def skips(self, tensor: Tensor) -> bool:
        """Return whether a tensor stays as it is."""
        parts = tensor.name.split(".")
        return not is_linear(tensor) or any(m in parts for m in (*self.UNFIT, *(self.llm_int8_skip_modules or ())))

    def form(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Any:
        """Return the options, which know what becomes of a layer, and where transformers needs it of experts too."""
        layers: Any = self  # each of the formats writes one
        return OneByOne(layers, config) if traits(config.get("model_type")).one_by_one else layers

    def config(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes in config.json; every key that BitsAndBytesConfig has is written."""
        unfit = [name for name in self.UNFIT if any(name in tensor.name.split(".") for tensor in tensors)]
        given = (*(self.llm_int8_skip_modules or ()), *unfit, *kept(tensors))
        # where modules are given, transformers does not know by itself that a head is not quantized
        heads = sorted({*HEADS, "decoder"}.difference(given)) if given and "lm_head" not in given else []
        skipped = {"llm_int8_skip_modules": [*given, *heads] or None}
        return {"quantization_config": {**_DEFAULTS, **skipped, **self.quantization_config()}}

    def quantization_config(self) -> dict[str, Any]:
        """Return what differs from BitsAndBytesConfig's defaults, but for the modules that are skipped."""
        return {}


_DEFAULTS: dict[str, Any] = {
    "_load_in_4bit": False,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": None,
    "llm_int8_threshold": 6.0,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "quant_method": QUANT_METHOD,
}
"""What BitsAndBytesConfig writes when nothing is chosen; every key is written."""
