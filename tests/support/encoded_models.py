"""Models whose weights ship in 8 or 4 bits, each with the dense model that its codes and scales stand for."""

import json
import shutil
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

EIGHT, LARGEST = torch.float8_e4m3fn, 448.0
LLAMA = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
GPT_OSS = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16,
           "num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}  # fmt: skip
CODES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Pair(NamedTuple):
    """Folders of one model."""

    encoded: object
    dense: object


def fp8_blocks(name, weight):
    rows, columns = weight.shape
    blocks = weight.float().reshape(-(-rows // 128), min(rows, 128), columns // 128, 128)
    scale = blocks.abs().amax((1, 3)) / LARGEST
    codes = (blocks / scale[:, None, :, None]).to(EIGHT)
    dense = (codes.float() * scale[:, None, :, None]).reshape(rows, columns)
    return {name: codes.reshape(rows, columns), f"{name}_scale_inv": scale}, dense


def fp8_whole(name, weight):
    scale = (weight.float().abs().amax() / LARGEST).bfloat16()
    codes = (weight.float() / scale.float()).to(EIGHT)
    other = name.replace("weight", "activation_scale")
    return {name: codes, f"{name}_scale_inv": scale, other: torch.tensor(0.1)}, codes.float() * scale.float()


def fp8_rows(name, weight):
    scale = (weight.float().abs().amax(1, keepdim=True) / LARGEST).bfloat16()
    codes = (weight.float() / scale.float()).to(EIGHT)
    return {name: codes, f"{name}_scale": scale}, codes.float() * scale.float()


def int4_groups(name, weight):
    """Pack 4-bit integers with zeros, as compressed-tensors does: the test of the encodings compares with itself."""
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, -1, 32)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scale = ((high - low) / 15).bfloat16()
    zero = (-low / scale.float()).round().clamp(0, 15)
    codes = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, 15)
    dense = ((codes - zero[..., None]) * scale.float()[..., None]).reshape(rows, columns)
    parts = {"packed": words(codes.reshape(rows, columns)), "scale": scale, "shape": torch.tensor([rows, columns])}
    parts["zero_point"] = words(zero.T).T.contiguous()
    return {f"{name}_{part}": value for part, value in parts.items()}, dense


def words(codes):
    """Put eight 4-bit codes of a row into a word, the first in its lowest bits."""
    eights = codes.long().reshape(len(codes), -1, 8) << 4 * torch.arange(8)
    return eights.sum(2).to(torch.uint32).view(torch.int32)


def int3_groups(name, weight):
    """Pack 3-bit integers, bit for bit."""
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, -1, 32)
    scale = (groups.abs().amax(2) / 3.5).bfloat16()
    codes = (groups / scale.float()[..., None]).round().clamp(-4, 3)
    bits = (codes.long().reshape(rows, columns, 1) + 4) >> torch.arange(3) & 1
    packed = (bits.reshape(rows, -1, 32) << torch.arange(32)).sum(2).to(torch.uint32).view(torch.int32)
    dense = (codes * scale.float()[..., None]).reshape(rows, columns)
    return {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": torch.tensor([rows, columns])}, dense


def int8_rows(name, weight):
    scale = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight.float() / scale.float()).round().clamp(-128, 127)
    return {name: codes.to(torch.int8), f"{name}_scale": scale}, codes * scale.float()


def fp8_compressed_blocks(name, weight):
    parts, dense = fp8_blocks(name, weight)
    return {part.replace("_scale_inv", "_scale"): value for part, value in parts.items()}, dense


def nearest_fours(groups):
    """Return the 4-bit floats nearest to numbers, two in a byte, and what they are."""
    codes = (groups[..., None] - CODES).abs().argmin(-1)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8), CODES[codes]


def mxfp4_rows(name, weight):
    """Encode a matrix as compressed-tensors does: gpt-oss lies the other way."""
    groups = weight.float().unflatten(1, (-1, 32))
    exponents = (groups.abs().amax(2) / 6).log2().ceil().clamp(-100, 100)
    packed, numbers = nearest_fours(groups / exponents.exp2()[..., None])
    dense = (numbers * exponents.exp2()[..., None]).flatten(1)
    return {f"{name}_packed": packed.flatten(1), f"{name}_scale": (exponents + 127).to(torch.uint8)}, dense


def nvfp4_rows(name, weight):
    """Encode a matrix, with the scales of activations and of the cache that come along."""
    groups = weight.float().unflatten(1, (-1, 16))
    over = (LARGEST * 6 / groups.abs().amax()).reshape(1)
    stored = (groups.abs().amax(2) / 6 * over).to(EIGHT)
    scale = (stored.float() / over)[..., None]
    packed, numbers = nearest_fours(groups / scale)
    layer = name.removesuffix(".weight")
    parts = {f"{name}_packed": packed.flatten(1), f"{name}_scale": stored, f"{name}_global_scale": over}
    parts[f"{layer}.input_global_scale"] = torch.ones(1)
    if layer.endswith(("k_proj", "v_proj")):
        parts[layer.replace("_proj", "_scale")] = torch.ones(1)
    return parts, (numbers * scale).flatten(1)


def mxfp4(name, weight):
    """Encode the experts of gpt-oss, [experts, inputs, outputs]."""
    groups = weight.float().transpose(1, 2).reshape(len(weight), weight.shape[2], -1, 32)
    exponents = (groups.abs().amax(3) / 6).log2().ceil().clamp(-100, 100)
    blocks, numbers = nearest_fours(groups / exponents.exp2()[..., None])
    parts = {"blocks": blocks, "scales": (exponents + 127).to(torch.uint8)}
    dense = (numbers * exponents.exp2()[..., None]).flatten(2).transpose(1, 2)
    return {f"{name}_{part}": value for part, value in parts.items()}, dense


def _compressed(form, **weights):
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


ENCODERS = {
    "fp8 in blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8 of tensors": (
        fp8_whole, {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    ),
    "fp8 of rows": (fp8_rows, _compressed("float-quantized", num_bits=8, type="float", strategy="channel")),
    "int4 in groups": (int4_groups, _compressed("pack-quantized", num_bits=4, type="int", strategy="group",
                                                group_size=32, symmetric=False)),
    "int3 in groups": (int3_groups, _compressed("pack-quantized", num_bits=3, strategy="group", group_size=32)),
    "int8 of rows": (int8_rows, _compressed("int-quantized", num_bits=8, type="int", strategy="channel")),
    "fp8 in compressed blocks": (
        fp8_compressed_blocks,
        _compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128]),
    ),
    "mxfp4 of rows": (mxfp4_rows, _compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group",
                                              group_size=32)),
    "nvfp4 of rows": (
        nvfp4_rows,
        _compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)
        | {"kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}},
    ),
    "mxfp4": (mxfp4, {"quant_method": "mxfp4"}),
}  # fmt: skip
"""How a weight is encoded, and what the config says of it."""


def encoded_model(place, encoding, tokenizer=None, max_shard_size="5GB", **sizes):
    """Save a random model twice; both have the tokenizer of a folder, where one is given.

    Args:
        place: An existing folder, in which the two become `encoded` and `dense`.
        encoding: Of ENCODERS.
        tokenizer: A folder with one.
        max_shard_size: Of the model before it is encoded.
        sizes: Changes of the config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, known = ("gpt_oss", GPT_OSS) if encoding == "mxfp4" else ("llama", LLAMA)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **known | {"num_hidden_layers": 2, "num_key_value_heads": 2} | sizes)
    pair = Pair(place / "encoded", place / "dense")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        pair.dense, max_shard_size=max_shard_size
    )
    for path in tokenizer.iterdir() if tokenizer else ():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, pair.dense)
    shutil.copytree(pair.dense, pair.encoded)
    encode, settings = ENCODERS[encoding]
    weight_map = {}
    for path in sorted(pair.dense.glob("*.safetensors")):
        dense, stored = load_file(path), {}
        for name, weight in list(dense.items()):
            parts = {name: weight}
            if name.endswith("_proj" if encoding == "mxfp4" else "_proj.weight"):
                parts, values = encode(name, weight)
                dense[name] = values.bfloat16().contiguous()
            stored |= {part: value.contiguous() for part, value in parts.items()}
        save_file(dense, path, {"format": "pt"})
        save_file(stored, pair.encoded / path.name, {"format": "pt"})
        weight_map |= dict.fromkeys(stored, path.name)
    if (index := pair.encoded / "model.safetensors.index.json").is_file():
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    said = json.loads((pair.encoded / "config.json").read_text())
    (pair.encoded / "config.json").write_text(json.dumps(said | {"quantization_config": settings}))
    return pair
