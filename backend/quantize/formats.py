"""Formats: what a model's weights are and who loads them, ours and others', from what its config.json says of them."""

from collections.abc import Mapping
from typing import Any

from backend.models.config import experts, quantization, text_type
from backend.quantize import bitsandbytes, cast, compressed_tensors
from backend.quantize.layouts import LAYOUTS
from backend.quantize.readers import EVERYWHERE, READERS, Readers, Reading
from backend.weights.decoded import encoded_as

GPT_OSS = Reading("vLLM serves gpt-oss in MXFP4 and 16 bit alone")

_FP8: Readers = EVERYWHERE | {
    "vllm": Reading(capability=7.5, native=8.9),
    "vllm-cpu": Reading("Without a GPU, vLLM does not serve FP8"),
}
_MXFP4: Readers = EVERYWHERE | {
    "vllm": Reading(capability=8.0, native=10.0),
    "vllm-cpu": Reading("Without a GPU, vLLM does not serve MXFP4"),
}

_OTHERS: Mapping[str, Readers] = {"fp8": _FP8, "mxfp4": _MXFP4}
"""Who loads what is read here and not written (vLLM's fp8.py and mxfp4.py)."""


def readers(config: Mapping[str, Any]) -> Readers:
    """Return who loads a model.

    Args:
        config: What its config.json says; of weights alone, their quantization_config in it is enough.
    """
    settings = quantization(config)
    method = str(settings.get("quant_method"))
    found = _readers(method, settings) if settings else cast.READERS
    if method not in LAYOUTS:
        return found
    if text_type(config) == "gpt_oss":
        return {**found, "vllm": GPT_OSS, "vllm-cpu": GPT_OSS}
    if experts(config) and not found["vllm-cpu"].refusal:
        return {**found, "vllm-cpu": Reading(f"vLLM serves experts in {method} with a GPU alone")}
    return found


def words(config: Mapping[str, Any]) -> str:
    """Say what a model's weights are quantized to, in the words of their field; nothing where they are not.

    Args:
        config: What its config.json says.
    """
    settings = quantization(config)
    if settings.get("quant_method") == compressed_tensors.QUANT_METHOD:
        return compressed_tensors.words(settings)
    held = {"load_in_4bit": 4, "load_in_8bit": 8}
    bits = settings.get("bits") or next((held[key] for key in held if settings.get(key)), None)
    return f"{bits} bits" if isinstance(bits, int) else encoded_as(config) or ""


def _readers(method: str, settings: Mapping[str, Any]) -> Readers:
    if method in LAYOUTS:
        return LAYOUTS[method].readers(settings)
    if method == bitsandbytes.QUANT_METHOD:
        return bitsandbytes.readers(settings)
    unknown = {name: Reading(f"{title.split(',')[0]} does not serve {method}") for name, title in READERS.items()}
    return _OTHERS.get(method) or {**unknown, "transformers": Reading()}
