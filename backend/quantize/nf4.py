"""NF4 and FP4: 4-bit numbers in blocks of 64 (QLoRA, arXiv 2305.14314), as bitsandbytes stores them.

Packed layout: bitsandbytes' `Linear4bit` as transformers saves it. The two differ in the 16 numbers of the grid.
"""

import json
from typing import Any, Literal

import numpy as np
from pydantic import Field

from backend.machine.hardware import torch_threads
from backend.models.rewriting import Dtype, stream
from backend.options import ADVANCED
from backend.quantize.bitsandbytes import BitsAndBytesOptions
from backend.quantize.method import Method
from backend.weights.codes import BLOCK, CODES, NESTED_BLOCK
from backend.weights.floats import SAFETENSORS, Bytes
from backend.weights.kernels import dynamic_map, quantize_4bit, quantize_absmax
from backend.weights.plan import Memory
from backend.weights.view import Source, View
from backend.weights.writer import Slot, Writer

TORCH = {short: name for name, short in SAFETENSORS.items()}

LONGEST_OFFSET = 1.1754943508222875e-38
"""A float32 that takes as many characters in JSON as any."""


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
        """Return what differs from BitsAndBytesConfig's defaults."""
        return {
            "_load_in_4bit": True,
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.method,
            "bnb_4bit_use_double_quant": self.bnb_4bit_use_double_quant,
            "bnb_4bit_compute_dtype": self.bnb_4bit_compute_dtype,
        }

    def slots(self, view: View) -> list[Slot]:
        """Return the tensors that a weight becomes, named as bitsandbytes names them."""
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
        """Return a tensor's quant_state."""
        state: dict[str, Any] = {"quant_type": self.method, "blocksize": BLOCK, "dtype": TORCH[view.dtype]}
        state["shape"] = list(view.shape)
        if self.bnb_4bit_use_double_quant:
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        return json.dumps(state).encode()

    @property
    def _state_name(self) -> str:
        return f"quant_state.bitsandbytes__{self.method}"


class Options(FourBitOptions):
    """4-bit NormalFloat."""

    method: Literal["nf4"] = "nf4"


class FP4Options(FourBitOptions):
    """4-bit floating point (E2M1)."""

    method: Literal["fp4"] = "fp4"


NF4 = Method(
    Options,
    "NF4 · 4 bit",
    "For tuning (QLoRA) and transformers: a quarter of the size, on a grid made for the weights of language models.",
    stream,
)

FP4 = Method(
    FP4Options,
    "FP4 · 4 bit",
    "For tuning and transformers: as NF4, on a floating-point grid that loses more on most models.",
    stream,
)
