"""Formats: what a model's weights are and who loads them, ours and others', from what its config.json says of them."""

from collections.abc import Mapping
from typing import Any

from backend.models.config import experts, quantization, text_type
from backend.quantize import bitsandbytes, cast, compressed_tensors
from backend.quantize.compressed_tensors import QUANT_METHOD, UNPACKED
from backend.quantize.layouts import LAYOUTS
from backend.quantize.readers import EVERYWHERE, READERS, Readers, Reading
from backend.weights.anatomy import TRANSPOSED
from backend.weights.decoded import encoded_as

_IN_ONE = {
    "gemma4_text", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hy_v4",
    "hy_v4_vl_text", "inkling_text", "lara_mini", "minimax_m3_vl_text", "mistral4", "muse_spark_text",
    "qwen3_vl_moe_text", "zaya",
}  # fmt: skip
"""Types of text models of which transformers reads all experts from one tensor alone, and not one by one."""

_TAKEN_APART = {"llama4_text"}
"""Those of which it makes linear layers of the experts before it loads compressed-tensors."""

_WITH_SCALES = {"bloom", "falcon", "gpt_bigcode", "gpt_neox", "gptj", "mpt", "starcoder2"}
"""Model types for which transformers looks for a scale behind an activation in AWQ, and makes it up where none is."""

_ELSEWHERE = {
    "biogpt", "blt", "gpt_neox_japanese", "granite_docling", "hrm_text", "idefics2", "idefics3", "llama4", "mpt",
    "nemotron_h_omni", "rwkv", "smolvlm", "xlstm",
}  # fmt: skip
"""Model types whose blocks optimum does not find, which looks for them under some names alone."""

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
    mixture = experts(config) > 0 or kind == "gpt_oss"
    found = {**found, "transformers": _in_transformers(config, method, mixture, found["transformers"])}
    if kind == "gpt_oss":
        return {**found, "vllm": GPT_OSS, "vllm-cpu": GPT_OSS}
    if mixture and not found["vllm-cpu"].refusal:
        return {**found, "vllm-cpu": Reading(f"vLLM serves experts in {method} with a GPU alone")}
    return found


def words(config: Mapping[str, Any]) -> str:
    """Say what a model's weights are quantized to, in the words of their field; nothing where they are not.

    Args:
        config: What its config.json says.
    """
    settings = quantization(config)
    if settings.get("quant_method") == QUANT_METHOD:
        return compressed_tensors.words(settings)
    held = {"load_in_4bit": 4, "load_in_8bit": 8}
    bits = settings.get("bits") or next((held[key] for key in held if settings.get(key)), None)
    return f"{bits} bits" if isinstance(bits, int) else encoded_as(config) or ""


def _in_transformers(config: Mapping[str, Any], method: str, mixture: bool, reading: Reading) -> Reading:
    """Return how transformers loads a model in one of the LAYOUTS; experts are written one by one.

    Args:
        config: What its config.json says.
        method: The layout.
        mixture: Whether it has experts.
        reading: How it loads others in the same format.
    """
    kind, whole = text_type(config), config.get("model_type")
    if method == "awq" and kind in _WITH_SCALES:
        return Reading(f"transformers wants scales of activations in awq of the type '{kind}'")
    if (method == "gptq" and whole in _ELSEWHERE) or (method in ("gptq", "awq") and kind in TRANSPOSED):
        return Reading(f"transformers does not find the layers of the type '{whole}' in {method}")
    if mixture and kind in _IN_ONE:
        return Reading(f"transformers reads the experts of the type '{kind}' from one tensor alone")
    if mixture and reading.experts and not (method == QUANT_METHOD and kind in _TAKEN_APART):
        return Reading(reading.experts)
    # its class has other names for some layers than its files, by which packed ones are not found
    return reading._replace(told=UNPACKED) if kind == "deepseek_v4" else reading


def _readers(method: str, settings: Mapping[str, Any]) -> Readers:
    if method in LAYOUTS:
        return LAYOUTS[method].readers(settings)
    if method == bitsandbytes.QUANT_METHOD:
        return bitsandbytes.readers(settings)
    unknown = {name: Reading(f"{title.split(',')[0]} does not serve {method}") for name, title in READERS.items()}
    return _OTHERS.get(method) or {**unknown, "transformers": Reading()}
