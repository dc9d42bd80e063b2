"""Formats: who loads a model's weights, ours and others', from what its config.json says of them."""

from collections.abc import Mapping
from typing import Any

from backend.models.config import experts, quantization, text_type
from backend.quantize import bitsandbytes, cast
from backend.quantize.layouts import LAYOUTS
from backend.quantize.readers import EVERYWHERE, READERS, Readers, Reading

_IN_ONE = {
    "gemma4_text", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hy_v4",
    "hy_v4_vl_text", "inkling_text", "lara_mini", "llama4_text", "minimax_m3_vl_text", "mistral4", "muse_spark_text",
    "qwen3_vl_moe_text", "zaya",
}  # fmt: skip
"""Types of text models of which transformers reads all experts from one tensor alone, and not one by one."""

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
    kind = text_type(config)
    if kind == "gpt_oss":
        return {**found, "transformers": _mixture(kind, found), "vllm": GPT_OSS, "vllm-cpu": GPT_OSS}
    if not experts(config):
        return found
    on_cpu = found["vllm-cpu"]
    if not on_cpu.refusal:
        on_cpu = Reading(f"vLLM serves experts in {method} with a GPU alone")
    return {**found, "transformers": _mixture(kind, found), "vllm-cpu": on_cpu}


def _mixture(kind: str, found: Readers) -> Reading:
    """Return how transformers loads a mixture whose experts are written one by one.

    Args:
        kind: Its model type.
        found: Who loads other models in the same format.
    """
    reading = found["transformers"]
    if kind in _IN_ONE:
        return Reading(f"transformers reads the experts of the type '{kind}' from one tensor alone")
    return Reading(reading.experts) if reading.experts else reading


def _readers(method: str, settings: Mapping[str, Any]) -> Readers:
    if method in LAYOUTS:
        return LAYOUTS[method].readers(settings)
    if method == bitsandbytes.QUANT_METHOD:
        return bitsandbytes.readers(settings)
    unknown = {name: Reading(f"{title.split(',')[0]} does not serve {method}") for name, title in READERS.items()}
    return _OTHERS.get(method) or {**unknown, "transformers": Reading()}
