"""Make tests/support/compressed_tensors: a few matrices as llm-compressor writes them, for writers to be compared with.

    .venv-llmcompressor/bin/python benchmarks/peer_fixtures.py [FOLDER]

It runs in the environment that benchmarks/calibrated.py makes, and knows nothing of the studio. llm-compressor
quantizes a Llama of one block in each scheme and saves it. `<scheme>.safetensors` holds what the checkpoint holds of
some layers, under the checkpoint's names, and where the numbers are others:

* `used/<name>`: the scale or zero point that was computed, before it was stored.
* `float32/<name>`: what the same writer makes of the same weights and scales when it divides in float32. It divides in
  the weights' own bfloat16, in which an integer of 8 bits is often rounded twice.
* `decoded/<name>`: what the package compressed-tensors makes of the first layer again.

`made` in the metadata is JSON: `quantization_config` as config.json got it, `source`, the file with the weights, and
`versions`.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.utils import get_direct_state_dict
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[1] / "tests" / "support" / "compressed_tensors"
PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")
ATTENTION, FEED = "model.layers.0.self_attn.", "model.layers.0.mlp."

MODELS = {
    "rows": {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "head_dim": 4},
    "edges": {"hidden_size": 8, "intermediate_size": 132, "num_attention_heads": 4, "head_dim": 2},
}
"""Shapes by the file that keeps their weights. Of `edges`, 132 is a block of 128 and four more."""
IGNORED = ["lm_head", "re:.*o_proj"]
"""Of `rows`, o_proj has fewer inputs than a group."""
FUSED = tuple(f"{ATTENTION}{name}_proj" for name in "kqv")
"""Share one global scale in NVFP4."""
KEPT = {"rows": FUSED, "edges": (f"{FEED}gate_proj", f"{FEED}down_proj")}

GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
SCHEMES = {
    "w4a16": ("rows", GROUPS),
    "w4a16_asym": ("rows", GROUPS | {"symmetric": False}),
    "w8a16": ("rows", GROUPS | {"num_bits": 8}),
    "w8a16_channel": ("rows", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}),
    "w8a8": ("rows", "W8A8"),
    "fp8_dynamic": ("rows", "FP8_DYNAMIC"),
    "fp8_block": ("edges", "FP8_BLOCK"),
    "mxfp4": ("rows", "MXFP4"),
    "nvfp4": ("rows", "NVFP4"),
    "nvfp4a16": ("rows", "NVFP4A16"),
}
"""By the file's name: the model, and the weights' settings or the name that llm-compressor has for the scheme."""


def main(folder: Path) -> None:
    """Write the files."""
    for name in MODELS:
        weights = model_of(name).state_dict()
        save(folder / f"{name}.safetensors", {f"{layer}.weight": weights[f"{layer}.weight"] for layer in KEPT[name]})
    for name, (model, settings) in SCHEMES.items():
        layers = KEPT[model] if name == "nvfp4" else KEPT[model][:2]
        tensors, config = written(model_of(model), scheme_of(settings), layers)
        save(folder / f"{name}.safetensors", tensors, source=model, quantization_config=config)


def model_of(name: str) -> LlamaForCausalLM:
    """Return a model of one block; the same weights each time, some rows and groups far larger than others."""
    torch.manual_seed(0)
    config = LlamaConfig(**MODELS[name], num_hidden_layers=1, num_key_value_heads=1, vocab_size=32)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight *= torch.logspace(-1, 1, weight.shape[0])[:, None] * torch.logspace(0, 0.5, weight.shape[1])
    return model.to(torch.bfloat16)


def scheme_of(settings: str | dict) -> QuantizationScheme:
    """Return a scheme for all linear layers."""
    if isinstance(settings, str):
        return preset_name_to_scheme(settings, ["Linear"])
    return QuantizationScheme(targets=["Linear"], weights=settings)


def written(
    source: LlamaForCausalLM, scheme: QuantizationScheme, layers: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], dict]:
    """Quantize and save a model; return the tensors of some layers, and what config.json says."""
    with tempfile.TemporaryDirectory() as place:
        source.save_pretrained(place)
        model = quantized(place, scheme)
        computed = {layer: get_direct_state_dict(model.get_submodule(layer)) for layer in layers}
        model.save_pretrained(f"{place}/out")
        stored = load_file(f"{place}/out/model.safetensors")
        config = json.loads(Path(f"{place}/out/config.json").read_text())["quantization_config"]
    package = BaseCompressor.get_value_from_registry(config["config_groups"]["group_0"]["format"])
    tensors = {}
    for layer, state in computed.items():
        scheme = model.get_submodule(layer).quantization_scheme
        parts = {name.rpartition(".")[2]: tensor for name, tensor in stored.items() if name.startswith(f"{layer}.")}
        tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        wide = package.compress(state | {"weight": state["weight"].float()}, scheme)
        scales = {part: tensor for part, tensor in state.items() if part != "weight"}
        tensors |= {f"float32/{layer}.{part}": tensor for part, tensor in others(wide, parts).items()}
        tensors |= {f"used/{layer}.{part}": tensor for part, tensor in others(scales, parts).items()}
        if layer == layers[0]:
            tensors[f"decoded/{layer}.weight"] = package.decompress(parts, scheme)["weight"].to(torch.bfloat16)
    return tensors, config


def others(found: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that were stored with other numbers."""
    return {part: tensor for part, tensor in found.items() if part in stored and not same(tensor, stored[part])}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether tensors hold the same numbers."""
    return one.shape == other.shape and torch.equal(one.float(), other.float())


def quantized(folder: str, scheme: QuantizationScheme) -> LlamaForCausalLM:
    """Have llm-compressor quantize the model in a folder."""
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))  # asked for, not used
    rows = Dataset.from_list([{"input_ids": list(range(32)), "attention_mask": [1] * 32}])
    recipe = QuantizationModifier(config_groups={"group_0": scheme}, ignore=IGNORED)
    return oneshot(model=folder, processor=words, dataset=rows, recipe=recipe, num_calibration_samples=1)


def save(path: Path, tensors: dict[str, torch.Tensor], **said: object) -> None:
    """Write a file; its metadata is one JSON text, because several would have no order."""
    made = json.dumps({**said, "versions": {name: version(name) for name in PACKAGES}}, separators=(",", ":"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"made": made})
    path.chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
