"""Models as files in memory, made without torch: what they say is what tests change."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
CARD = "---\nlicense: llama3.2\nlicense_link: LICENSE\nlanguage:\n- en\n- de\n---\n# Tiny\n"
TENSORS = {
    "model.embed_tokens.weight": np.ones((256, 64), np.float16),
    "model.layers.0.mlp.up_proj.weight": np.ones((128, 64), np.float16),
    "lm_head.weight": np.ones((256, 64), np.float16),
}


def paper_model(config: Mapping[str, Any] | None = None, **files: Any) -> dict[str, bytes | str]:
    """Give a model's files.

    Args:
        config: Fields of config.json to set; a value of `...` leaves the field out.
        files: File names, with `__` for a dot and `_o_` for a slash, and contents (objects become JSON); None leaves
            the file out.
    """
    fields = {key: value for key, value in {**CONFIG, **(config or {})}.items() if value is not ...}
    model: dict[str, Any] = {
        "config.json": fields,
        "tokenizer.json": {"version": "1.0", "model": {"type": "BPE"}},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}"},
        "model.safetensors": save(TENSORS),
        "README.md": CARD,
    }
    model |= {name.replace("_o_", "/").replace("__", "."): content for name, content in files.items()}
    return {
        name: content if isinstance(content, str | bytes) else json.dumps(content)
        for name, content in model.items()
        if content is not None
    }


def sharded(model: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
    """Give the same model with one shard a tensor and an index."""
    names = {tensor: f"model-{i:05}-of-00003.safetensors" for i, tensor in enumerate(TENSORS, 1)}
    shards = {shard: save({tensor: TENSORS[tensor]}) for tensor, shard in names.items()}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    rest = {name: content for name, content in model.items() if name != "model.safetensors"}
    return {**rest, **shards, "model.safetensors.index.json": index}


def write(folder: Path, model: Mapping[str, bytes | str]) -> Path:
    """Write a model's files into a folder."""
    for name, content in model.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder
