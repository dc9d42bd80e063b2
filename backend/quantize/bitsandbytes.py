"""What nf4, fp4 and int8 share: options, and the layout of 4-bit weights; no torch, no bitsandbytes.

Packed layout: bitsandbytes' `Linear4bit` and `Linear8bitLt` as transformers saves them (QLoRA, arXiv 2305.14314;
LLM.int8(), arXiv 2208.07339).
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from backend.errors import SpecError
from backend.models.facts import ModelFacts, Tensor
from backend.models.machine import torch_threads
from backend.options import Frozen
from backend.progress import Report
from backend.quantize.streaming import Source, stream, write_config
from backend.weights.floats import SAFETENSORS, to_float32
from backend.weights.kernels import BLOCK, CODES, NESTED_BLOCK, dynamic_map, quantize_4bit, quantize_absmax
from backend.weights.writer import Slot, Writer

TORCH = {short: name for name, short in SAFETENSORS.items()}

Dtype = Literal["float32", "bfloat16", "float16"]

ADVANCED: dict[str, Any] = {"advanced": True}

UNUSUAL = ("afmoe", "deepseek_v4", "falcon", "jetmoe", "zamba", "zamba2")
"""Model types whose linear layers are classes of their own, are shared, or are not where their names say."""

STATE = 1024  # bytes of a quant_state at the most
NESTED_STATE = 92  # bytes that double quantization adds to a tensor's quant_state, give or take the digits of a float


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
            SpecError: A module to skip is not in the model; the model has no layer that can be quantized.
        """
        if facts.model_type in UNUSUAL:
            raise SpecError(
                f"'{facts.model}' is of the type '{facts.model_type}', whose layers transformers does not load from"
                " bitsandbytes' formats: choose method cast, or another model."
            )
        linears = [tensor for tensor in facts.tensors if tensor.is_linear]
        if not linears:
            raise SpecError(f"'{facts.model}' has no linear layers that could be quantized: choose another model.")
        names = {part for tensor in facts.tensors for part in tensor.name.split(".")} | {"lm_head"}
        for module in self.llm_int8_skip_modules or ():
            if module.rsplit(".", 1)[-1] not in names:
                known = ", ".join(sorted({tensor.name.split(".")[-2] for tensor in linears}))
                text = f"'{module}' is no module of the model: choose among {known}"
                raise SpecError(f"llm_int8_skip_modules: {text}", {"llm_int8_skip_modules": text})

    def skips(self, tensor: Tensor) -> bool:
        """Whether a tensor stays as it is."""
        return not tensor.is_linear or any(m in tensor.name.split(".") for m in self.llm_int8_skip_modules or ())

    def config(self) -> dict[str, Any]:
        """Give what differs from BitsAndBytesConfig's defaults in config.json."""
        return {"llm_int8_skip_modules": list(self.llm_int8_skip_modules or ()) or None}


class FourBitOptions(BitsAndBytesOptions):
    """Names and defaults are BitsAndBytesConfig's, but for double quantization, which costs nothing and saves space."""

    method: Literal["nf4", "fp4"]
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
        state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": tensor.shape}
        nested = NESTED_STATE if self.bnb_4bit_use_double_quant else 0
        return -(-tensor.elements // 2) + scales + 4 * 16 + len(json.dumps(state)) + nested

    def config(self) -> dict[str, Any]:
        """Give what differs from BitsAndBytesConfig's defaults in config.json."""
        return {
            **super().config(),
            "_load_in_4bit": True,
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.method,
            "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            "bnb_4bit_compute_dtype": self.bnb_4bit_compute_dtype,
        }

    def slots(self, source: Source) -> list[Slot]:
        """Give the tensors that a weight becomes, named as bitsandbytes names them."""
        name, blocks = source.name, -(-source.elements // BLOCK)
        slots = [
            Slot(name, "U8", (-(-source.elements // 2), 1)),
            Slot(f"{name}.quant_map", "F32", (16,)),
            Slot(f"{name}.{self._state_name}", "U8", (STATE,), open=True),
        ]
        if not self.bnb_4bit_use_double_quant:
            return [*slots, Slot(f"{name}.absmax", "F32", (blocks,))]
        return [
            *slots,
            Slot(f"{name}.absmax", "U8", (blocks,)),
            Slot(f"{name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCK),)),
            Slot(f"{name}.nested_quant_map", "F32", (256,)),
        ]

    def write(self, source: Source, writer: Writer) -> None:
        """Quantize a weight piece by piece; of its scales, all are kept until the end."""
        name, scales = source.name, np.empty(-(-source.elements // BLOCK), np.float32)
        for first, raw in source.pieces(BLOCK):
            packed, absmax = quantize_4bit(to_float32(raw, source.dtype), self.method)
            writer.write(name, packed, first // 2)
            scales[first // BLOCK : first // BLOCK + len(absmax)] = absmax
        state: dict[str, Any] = {"quant_type": self.method, "blocksize": BLOCK, "dtype": TORCH[source.dtype]}
        state["shape"] = list(source.shape)
        stored: Any = scales
        if self.bnb_4bit_use_double_quant:
            stored, nested, offset = quantize_absmax(scales, torch_threads())
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(offset)}
            writer.write(f"{name}.nested_absmax", nested)
            writer.write(f"{name}.nested_quant_map", dynamic_map())
        writer.write(f"{name}.absmax", stored)
        writer.write(f"{name}.quant_map", CODES[self.method])
        writer.write(f"{name}.{self._state_name}", json.dumps(state).encode())

    @property
    def _state_name(self) -> str:
        return f"quant_state.bitsandbytes__{self.method}"


def save_quantized(source: Path, output: Path, options: Any, report: Report) -> None:
    """Quantize a model folder into the bytes and the config that bitsandbytes and transformers would write.

    Args:
        source: A folder with config.json and safetensors weights; 16- or 32-bit floats.
        output: An existing empty folder.
        options: The method's: a BitsAndBytesOptions that is a Format.
        report: Told the bytes done.
    """
    stream(source, output, options, None, report)
    write_config(source, output, {"quantization_config": {**_DEFAULTS, **options.config()}})


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
    "quant_method": "bitsandbytes",
}
"""What BitsAndBytesConfig writes when nothing is chosen; every key is written."""
