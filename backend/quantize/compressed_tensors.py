"""compressed-tensors: what the methods and layouts of that format share, which is what its config says.

Format: github.com/vllm-project/compressed-tensors 0.20. vLLM, SGLang, transformers and llama.cpp's converter read it.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from backend.quantize.readers import EVERYWHERE, UNREAD, Readers, Reading, together
from backend.weights.anatomy import HEADS

QUANT_METHOD = "compressed-tensors"

_PATTERN = "re:"
"""What a target begins with that is a pattern of names."""

UNPACKED = "CompressedTensorsConfig(dequantize=True)"
"""What transformers is told to unpack all weights while it loads them."""

Arguments = Mapping[str, Any]
"""How numbers are quantized, as the package's QuantizationArgs names it: num_bits, type, strategy and more."""


def quantization_config(
    form: str, weights: Arguments, kept: Sequence[str] = (), activations: Arguments | None = None
) -> dict[str, Any]:
    """Return the quantization_config of config.json.

    Args:
        form: What the package calls the way in which weights lie: pack-quantized, float-quantized and so on.
        weights: How they are quantized.
        kept: Parts of the names of what is not quantized, beside the output head.
        activations: How the inputs of layers are, where they are.
    """
    group = {
        "targets": ["Linear"],
        "weights": {**_STATIC, **weights},
        "input_activations": {**_STATIC, **activations} if activations else None,
        "output_activations": None,
        "format": form,
    }
    return {
        "quant_method": QUANT_METHOD,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [
            *sorted(f"{_PATTERN}.*\\b{head}$" for head in HEADS),
            *(f"{_PATTERN}.*\\b{re.escape(name)}\\b.*" for name in kept),
        ],
        "kv_cache_scheme": None,
    }


def inputs_of(settings: Mapping[str, Any], layer: str) -> Arguments | None:
    """Return how engines round the inputs of a layer whose weights are quantized; None: they do not.

    Args:
        settings: The quantization_config.
        layer: Its name. Of several groups, one that names it goes before one with a pattern for its name, and that
            before one for a class, as in the package's `match_targets`.
    """

    found = [group for group in _groups(settings) if group.get("weights")]
    group = found[0] if len(found) == 1 else min(found, key=lambda group: _distance(group, layer), default={})
    inputs = group.get("input_activations")
    return inputs if isinstance(inputs, Mapping) else None


def _distance(group: Mapping[str, Any], layer: str) -> int:
    """Return how far the targets of a group are from naming a layer."""
    targets = [str(target) for target in group.get("targets") or ()]
    if layer in targets:
        return 0
    with suppress(re.error):
        if any(re.match(target.removeprefix(_PATTERN), layer) for target in targets if target.startswith(_PATTERN)):
            return 1
    return 2


def words(settings: Mapping[str, Any]) -> str:
    """Say what weights with this quantization_config are, in the words of their field."""
    said = (_words(group["weights"]) for group in _groups(settings) if isinstance(group.get("weights"), Mapping))
    return " and ".join(dict.fromkeys(said))


def _words(weights: Arguments) -> str:
    kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits", 8), weights.get("strategy")
    if kind != "float" or bits not in (4, 8):
        return f"{bits} bits"
    if bits == 4 and strategy == "tensor_group":
        return "NVFP4, 4-bit floats with one FP8 scale for 16 weights and one scale for the layer"
    if bits == 4:
        return "MXFP4, 4-bit floats with one power-of-two scale for 32 weights"
    block = " × ".join(map(str, weights.get("block_structure") or ()))
    shared = {"channel": "row", "block": f"block of {block}", "tensor": "layer"}.get(str(strategy))
    return f"FP8 (E4M3) with one scale for a {shared}" if shared else "FP8 (E4M3)"


def readers(settings: Mapping[str, Any]) -> Readers:
    """Return who loads weights with this quantization_config: of several groups of layers, who loads them all."""
    forms = (_readers(str(group.get("format") or settings.get("format")), group) for group in _groups(settings))
    known = together(forms)
    return known | {"transformers": known["transformers"]._replace(packages=("compressed-tensors",), apt=False)}


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what is said of each group of layers."""
    groups = settings.get("config_groups")
    return [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []


def _readers(form: str, group: Mapping[str, Any]) -> Readers:
    """Return who loads a group of layers.

    Of vLLM: `compressed_tensors.py` and what `get_min_capability` says of the scheme that it chooses there, and the
    kernels of its `kernels/linear/__init__.py` for a CPU.
    """
    weights = group.get("weights")
    known: Arguments = weights if isinstance(weights, Mapping) else {}
    if form == "pack-quantized":
        return _integers(known)
    if form == "float-quantized":
        return _floats(known, computed=bool(group.get("input_activations")))
    if form == "int-quantized" and not group.get("input_activations"):
        return _INTEGERS | _unserved("vLLM serves int-quantized with 8-bit activations alone")
    return _FORMS.get(form) or EVERYWHERE | _unserved(f"vLLM does not serve compressed-tensors' {form}")


def _integers(weights: Arguments) -> Readers:
    """Return who loads packed integers: Marlin multiplies them in 4 and 8 bits, Humming in others, CPUWNA16 in 4.

    transformers 5.24 with the package 0.20.1 has no room for packed zeros, and refuses them unless it unpacks.
    """
    in_transformers = Reading()
    if not weights.get("symmetric", True):
        zeros = UNREAD.format("packed integers with zeros")
        in_transformers = Reading(told=UNPACKED, experts=zeros)
    on_cpu = Reading("Without a GPU, vLLM serves packed integers of 4 bits alone")
    in_rows = Reading("llama.cpp converts packed integers in groups alone")
    return EVERYWHERE | {
        "transformers": in_transformers,
        "vllm": Reading(capability=7.5),
        "vllm-cpu": Reading() if weights.get("num_bits") == 4 else on_cpu,
        "llama.cpp": Reading() if weights.get("strategy") == "group" else in_rows,
    }


def _floats(weights: Arguments, computed: bool) -> Readers:
    """Return who loads 8-bit floats: CompressedTensorsW8A8Fp8 from 8.9 on, and below it CompressedTensorsW8A16Fp8.

    On a CPU it is ChannelWiseTorchFP8ScaledMMLinearKernel; the kernels for blocks there need AMX.

    Args:
        weights: How they are quantized.
        computed: Whether what comes in is quantized, too.
    """
    on_cpu = Reading()
    if not computed:
        on_cpu = Reading("Without a GPU, vLLM serves FP8 with 8-bit activations alone")
    if weights.get("strategy") == "block":
        on_cpu = Reading("Without a GPU, vLLM does not serve FP8 in blocks")
    return EVERYWHERE | {
        "vllm": Reading(capability=7.5, native=8.9),
        "vllm-cpu": on_cpu,
    }


def _unserved(reason: str) -> Readers:
    return dict.fromkeys(("vllm", "vllm-cpu", "sglang", "llama.cpp"), Reading(reason))


_INTEGERS: Readers = EVERYWHERE | {"transformers": Reading(experts=UNREAD.format("int-quantized"))}

_FORMS: Mapping[str, Readers] = {
    # CompressedTensorsW8A8Int8; its page says that Blackwell has no INT8 kernels
    "int-quantized": _INTEGERS
    | {"vllm": Reading(capability=7.5, native=7.5, until=10.0), "vllm-cpu": Reading(native=0)},
    # CompressedTensorsW4A4Fp4; transformers 5.24 leaves out the scale of a whole expert
    "nvfp4-pack-quantized": EVERYWHERE
    | {
        "transformers": Reading(experts=UNREAD.format("NVFP4")),
        "vllm": Reading(capability=7.5, native=10.0),
        "vllm-cpu": Reading("Without a GPU, vLLM does not serve NVFP4"),
    },
    # CompressedTensorsW4A4Mxfp4
    "mxfp4-pack-quantized": EVERYWHERE
    | {
        "vllm": Reading(capability=8.0, native=10.0),
        "vllm-cpu": Reading("Without a GPU, vLLM does not serve MXFP4"),
        "llama.cpp": Reading("llama.cpp converts MXFP4 of compressed-tensors for Kimi K3 alone"),
    },
}
"""Who loads the other forms."""

_STATIC: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
