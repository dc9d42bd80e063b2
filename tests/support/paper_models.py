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
_LAYER = {
    "input_layernorm": (64,),
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "post_attention_layernorm": (64,),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
_SHARDS = (
    {"model.embed_tokens.weight": (256, 64)},
    {f"model.layers.{i}.{name}.weight": shape for i in (0, 1) for name, shape in _LAYER.items()},
    {"model.norm.weight": (64,), "lm_head.weight": (256, 64)},
)
TENSORS = {name: np.ones(shape, np.float16) for shard in _SHARDS for name, shape in shard.items()}


def paper_model(config: Mapping[str, Any] | None = None, **files: Any) -> dict[str, bytes | str]:
    """Return a model's files.

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
    """Return the same model in three shards with an index: the embeddings, the layers, and the rest."""
    named = {f"model-{i:05}-of-00003.safetensors": tensors for i, tensors in enumerate(_SHARDS, 1)}
    shards = {shard: save({tensor: TENSORS[tensor] for tensor in tensors}) for shard, tensors in named.items()}
    names = {tensor: shard for shard, tensors in named.items() for tensor in tensors}
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
