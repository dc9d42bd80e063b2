"""Quantized folders read in NumPy, knowing nothing of what wrote them, and how far they are from the original."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where output i of eight lies in a word of AutoAWQ's GEMM layout, in nibbles from the lowest."""


BESIDE = (".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape")
"""Ends of the names of tensors that say how others are stored; compressed-tensors keeps some beside dense weights."""


def tokens_of(model: Path, text: str, length: int) -> list[list[int]]:
    """Cut a text into windows of tokens."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]


def divergence(model: Path, folder: Path, texts: Mapping[str, list[list[int]]]) -> dict[str, float]:
    """Return mean KL(original ‖ result) in nats a token for each text."""
    import torch
    from transformers import AutoModelForCausalLM

    both = [AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16), unpacked(model, folder)]
    found = {}
    with torch.inference_mode():
        for name, windows in texts.items():
            total = 0.0
            for window in windows:
                ids = torch.tensor([window])
                p, q = (m(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1) for m in both)
                total += float((p.exp() * (p - q)).sum())
            found[name] = total / sum(map(len, windows))
    return found


def unpacked(model: Path, folder: Path) -> Any:
    """Load a folder as a bfloat16 model, its integers unpacked here."""
    import torch
    from safetensors.torch import load_file  # noqa: PLC0415 - imports torch
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    settings = config.get("quantization_config") or {}
    if settings.get("quant_method") == "bitsandbytes":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    if settings.get("quantization_status") == "compressed":
        return decompressed(folder)
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    result = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    state = {}
    for name, tensor in tensors.items():
        if name.endswith(".qweight"):
            base = name.removesuffix("qweight")
            parts = {key: tensors[base + key].float().numpy() if key == "scales" else tensors[base + key].numpy()
                     for key in ("qweight", "qzeros", "scales", "g_idx") if base + key in tensors}  # fmt: skip
            weight = gptq(parts, settings) if settings["quant_method"] == "gptq" else awq(parts)
            state[base + "weight"] = torch.from_numpy(weight)
        elif not name.endswith(BESIDE):
            state[name] = tensor
    left_out = result.load_state_dict(state, strict=False)
    missing = {name for name in left_out.missing_keys if name != "lm_head.weight"}
    if missing or left_out.unexpected_keys:
        raise SystemExit(f"{folder} does not fit the model: {sorted(missing)[:3]} {left_out.unexpected_keys[:3]}")
    return result


def decompressed(folder: Path) -> Any:
    """Load a folder with the package compressed-tensors, which rounds inputs of layers where the config says so."""
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    settings = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=settings)
    for module in model.modules():
        if scheme := getattr(module, "quantization_scheme", None):  # or it rounds the same weights at every call
            module.quantization_scheme = scheme.model_copy(update={"weights": None})
    return model


def gptq(parts: dict[str, Any], settings: Mapping[str, Any]) -> Any:
    """Unpack a layer of AutoGPTQ's layout into [out, in]; bits run on from word to word."""
    bits = int(settings["bits"])
    q, zeros = fields(parts["qweight"], bits), fields(np.ascontiguousarray(parts["qzeros"].T), bits).T
    zeros = zeros + (settings.get("checkpoint_format", "gptq") == "gptq")
    groups = parts["g_idx"].astype(np.int64)
    weight: Any = ((q - zeros[groups]) * parts["scales"][groups]).astype(np.float32)
    return np.ascontiguousarray(weight.T)


def fields(words: Any, bits: int) -> Any:
    """Read integers of some bits along the first axis of 32-bit words, lowest first."""
    raw = words.view(np.uint32)
    stream = ((raw[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1).reshape(-1, raw.shape[1])
    grouped = stream.reshape(-1, bits, raw.shape[1]).astype(np.int64)
    return (grouped << np.arange(bits)[None, :, None]).sum(1)


def awq(parts: dict[str, Any]) -> Any:
    """Unpack a layer of AutoAWQ's GEMM layout into [out, in]."""

    def eight(words: Any) -> Any:
        nibbles = (words.view(np.uint32)[..., None] >> (4 * np.array(ORDER, np.uint32))) & 15
        return nibbles.reshape(words.shape[0], -1).astype(np.int64)

    q, zeros = eight(parts["qweight"]), eight(parts["qzeros"])
    size = len(q) // len(zeros)
    weight: Any = ((q - zeros.repeat(size, 0)) * parts["scales"].repeat(size, 0)).astype(np.float32)
    return np.ascontiguousarray(weight.T)


def main() -> None:
    """Print how far a folder is from a model on texts, `python -m benchmarks.unpacked MODEL FOLDER TEXTS`."""
    model, folder, texts = map(Path, sys.argv[1:])
    sys.stdout.write(json.dumps(divergence(model, folder, json.loads(texts.read_text()))) + "\n")


if __name__ == "__main__":
    main()
