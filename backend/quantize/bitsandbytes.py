"""What nf4, fp4 and int8 share: options, and the layout of 4-bit weights; no torch, no bitsandbytes.

Packed layout: bitsandbytes' `Linear4bit` and `Linear8bitLt` as transformers saves them (QLoRA, arXiv 2305.14314;
LLM.int8(), arXiv 2208.07339).
"""

import json
from typing import Any, Literal

import numpy as np
from pydantic import Field

from backend.errors import SpecError
from backend.machine.hardware import torch_threads
from backend.models.facts import ModelFacts
from backend.models.families import MULTIPLIED, UNUSUAL
from backend.models.rewriting import Dtype, StreamOptions
from backend.options import ADVANCED
from backend.weights.codes import BLOCK, CODES, NESTED_BLOCK
from backend.weights.floats import SAFETENSORS, Bytes
from backend.weights.kernels import dynamic_map, quantize_4bit, quantize_absmax
from backend.weights.plan import Memory
from backend.weights.tensor import HEADS, Tensor
from backend.weights.view import Source, View
from backend.weights.writer import Slot, Writer

TORCH = {short: name for name, short in SAFETENSORS.items()}


LONGEST_OFFSET = 1.1754943508222875e-38
"""A float32 that takes as many characters in JSON as any."""


class BitsAndBytesOptions(StreamOptions):
    """Names are BitsAndBytesConfig's; upstream uses the same skip list for 4 and 8 bit. The options are the Format."""

    makes = "quantized"
    stage: Literal["quantize"] = "quantize"
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
        if facts.model_type in UNUSUAL:
            raise SpecError(
                f"'{facts.model}' is of the type '{facts.model_type}', whose layers transformers does not load from"
                " bitsandbytes' formats: choose method cast, or another model."
            )
        linears = [tensor for tensor in facts.tensors if tensor.is_linear]
        if not linears:
            raise SpecError(f"'{facts.model}' has no linear layers that could be quantized: choose another model.")
        whole = MULTIPLIED.get(facts.model_type)
        if whole and any(whole in tensor.name.split(".") for tensor in linears if not self.skips(tensor)):
            text = (
                f"a model of the type '{facts.model_type}' multiplies by the weight of '{whole}' itself: give {whole}"
            )
            raise SpecError(f"llm_int8_skip_modules: {text}", {"llm_int8_skip_modules": text})
        known = {tensor.name.split(".")[-2] for tensor in linears}
        for module in self.llm_int8_skip_modules or ():
            if module not in known | HEADS:  # a part of a path means other layers to each of those who read the result
                text = f"'{module}' is no linear layer of the model: choose among {', '.join(sorted(known))}"
                raise SpecError(f"llm_int8_skip_modules: {text}", {"llm_int8_skip_modules": text})

    def skips(self, tensor: Tensor) -> bool:
        """Whether a tensor stays as it is."""
        return not tensor.is_linear or any(m in tensor.name.split(".") for m in self.llm_int8_skip_modules or ())

    def form(self) -> Any:
        """Give the options: they know what becomes of each tensor."""
        return self

    def config(self) -> dict[str, Any]:
        """Give what changes in config.json; every key that BitsAndBytesConfig has is written."""
        return {"quantization_config": {**_DEFAULTS, **self.quantization_config()}}

    def quantization_config(self) -> dict[str, Any]:
        """Give what differs from BitsAndBytesConfig's defaults."""
        given = self.llm_int8_skip_modules or ()
        # where modules are given, transformers does not know by itself that a head is not quantized
        heads = sorted({*HEADS, "decoder"}.difference(given)) if given and "lm_head" not in given else []
        return {"llm_int8_skip_modules": [*given, *heads] or None}


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

    def quantization_config(self) -> dict[str, Any]:
        """Give what differs from BitsAndBytesConfig's defaults."""
        return {
            **super().quantization_config(),
            "_load_in_4bit": True,
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.method,
            "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            "bnb_4bit_compute_dtype": self.bnb_4bit_compute_dtype,
        }

    def slots(self, view: View) -> list[Slot]:
        """Give the tensors that a weight becomes, named as bitsandbytes names them."""
        name, blocks = view.name, -(-view.elements // BLOCK)
        state = len(self._state(view, LONGEST_OFFSET))
        slots = [
            Slot(name, "U8", (-(-view.elements // 2), 1)),
            Slot(f"{name}.quant_map", "F32", (16,)),
            Slot(f"{name}.{self._state_name}", "U8", (state,), open=self.bnb_4bit_use_double_quant),
        ]
        if not self.bnb_4bit_use_double_quant:
            return [*slots, Slot(f"{name}.absmax", "F32", (blocks,))]
        return [
            *slots,
            Slot(f"{name}.absmax", "U8", (blocks,)),
            Slot(f"{name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCK),)),
            Slot(f"{name}.nested_quant_map", "F32", (256,)),
        ]

    def memory(self, view: View) -> Memory:
        """Half a byte an element, what the loop takes, and the scales, which are quantized as a whole."""
        blocks = -(-view.elements // BLOCK)
        return Memory(2.5, 4 * blocks + (blocks + 4 * blocks // NESTED_BLOCK) * self.bnb_4bit_use_double_quant)

    def write(self, source: Source, writer: Writer) -> None:
        """Quantize a weight piece by piece; of its scales, all are kept until the end."""
        name, scales = source.name, np.empty(-(-source.elements // BLOCK), np.float32)

        def piece(first: int, raw: Bytes) -> None:
            packed, absmax = quantize_4bit(raw, source.dtype, self.method)
            writer.write(name, packed, first // 2)
            scales[first // BLOCK : first // BLOCK + len(absmax)] = absmax

        source.each(piece, BLOCK)
        offset, stored = np.float32(0), scales.view(np.uint8)
        if self.bnb_4bit_use_double_quant:
            stored, nested, offset = quantize_absmax(scales, torch_threads())
            writer.write(f"{name}.nested_absmax", nested)
            writer.write(f"{name}.nested_quant_map", dynamic_map())
        writer.write(f"{name}.absmax", stored)
        writer.write(f"{name}.quant_map", CODES[self.method])
        writer.write(f"{name}.{self._state_name}", self._state(source, float(offset)))

    def _state(self, view: View, offset: float) -> bytes:
        """Give a tensor's quant_state."""
        state: dict[str, Any] = {"quant_type": self.method, "blocksize": BLOCK, "dtype": TORCH[view.dtype]}
        state["shape"] = list(view.shape)
        if self.bnb_4bit_use_double_quant:
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        return json.dumps(state).encode()

    @property
    def _state_name(self) -> str:
        return f"quant_state.bitsandbytes__{self.method}"


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
