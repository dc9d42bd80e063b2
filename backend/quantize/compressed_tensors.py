"""compressed-tensors: what the methods and layouts of that format share, which is what its config says.

Format: github.com/vllm-project/compressed-tensors 0.20. vLLM, SGLang, transformers and llama.cpp's converter read it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from backend.weights.anatomy import HEADS

QUANT_METHOD = "compressed-tensors"
PACKAGES: tuple[str, ...] = ("compressed-tensors",)

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
            *sorted(f"re:.*\\b{head}$" for head in HEADS),
            *(f"re:.*\\b{re.escape(name)}\\b.*" for name in kept),
        ],
        "kv_cache_scheme": None,
    }


_STATIC: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
