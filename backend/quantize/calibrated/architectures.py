"""Architectures: where a model's blocks are, which linear layers share an input, and what a scale folds into.

A scale s on the input channels of linear layers changes nothing where what comes before is divided by it: W·s and x/s.
What comes before is a norm's weight (and bias), or the output rows of a linear layer that reaches the input channels
without anything between that is not linear in it (AWQ, arXiv 2306.00978, §3.2).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""For each input channel of a group, the row of what comes before that it is made from."""


class Fold(NamedTuple):
    """What takes up the inverse of a scale.

    Attributes:
        into: The module, within the block.
        rows: The row that makes each input channel; None: row i makes channel i.
        plus_one: Whether a norm multiplies by 1 + its weight.
    """

    into: str
    rows: Rows | None = None
    plus_one: bool = False


class Group(NamedTuple):
    """Linear layers with one input.

    Attributes:
        linears: Modules within the block; the first is where the input is looked at.
        fold: What takes up a scale; None: nothing does.
    """

    linears: tuple[str, ...]
    fold: Fold | None = None


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def groups_of(config: Mapping[str, Any]) -> tuple[Group, ...] | None:
    """Return the groups of a kind of model's blocks, in the order in which they are computed; None where nobody knows.

    A block has those of them whose layers are in it.

    Args:
        config: What transformers' config of the text model says, defaults included.
    """
    make = _TABLE.get(str(config.get("model_type")))
    return make(config) if make else None


def _llama(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return _gated(config, "input_layernorm", "post_attention_layernorm")


def _gemma(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return _gated(config, "input_layernorm", "pre_feedforward_layernorm", plus_one=True)


def _zero_centered(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return _gated(config, "input_layernorm", "post_attention_layernorm", plus_one=True)


def _gemma4(config: Mapping[str, Any]) -> tuple[Group, ...]:
    groups = _gated(config, "input_layernorm", "pre_feedforward_layernorm")
    return tuple(
        g._replace(fold=None) if g.linears == ("self_attn.o_proj",) else g for g in groups
    )  # values are normed


def _gemma3n(config: Mapping[str, Any]) -> tuple[Group, ...]:
    attention, *rest = _gemma4(config)
    return (
        Group((*attention.linears, "laurel.linear_left")),  # laurel adds what it is given to what it gives
        Group(("laurel.linear_right",), Fold("laurel.linear_left")),
        *rest,
    )


def _olmo2(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return _gated(config, None, None)  # its norms come after the layers


def _gated(
    config: Mapping[str, Any], attention: str | None, feed: str | None, plus_one: bool = False
) -> tuple[Group, ...]:
    """Return the usual block: q, k, v and o, then gate, up and down, with a norm before each half or none.

    Where several query heads share values nothing is folded into these: one scale would have to suit all, and on
    the demo model that loses (KL 0.065 instead of 0.063, on other text 0.065 instead of 0.061).
    """
    heads, shared, _ = _heads(config)
    return (
        Group(
            _QKV,
            Fold(attention, plus_one=plus_one) if attention else None,
        ),
        Group(("self_attn.o_proj",), None if shared < heads else Fold("self_attn.v_proj")),
        Group(("mlp.gate_proj", "mlp.up_proj"), Fold(feed, plus_one=plus_one) if feed else None),
        Group(("mlp.down_proj",), Fold("mlp.up_proj")),
    )


def _latent(config: Mapping[str, Any]) -> tuple[Group, ...]:
    """Return the groups of attention through a few numbers, and of feed-forward layers without experts."""
    _, _, *feed = _llama(config)
    return (
        Group(
            ("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
            Fold("input_layernorm"),
        ),
        Group(("self_attn.q_b_proj",), Fold("self_attn.q_a_layernorm")),
        Group(("self_attn.kv_b_proj",), Fold("self_attn.kv_a_layernorm")),
        *feed,
    )


def _falcon_h1(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return _feed("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj", "pre_ff_layernorm")


def _lfm2(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return (
        Group(_QKV, Fold("operator_norm")),
        Group(("conv.in_proj",), Fold("operator_norm")),
        *_feed("feed_forward.w1", "feed_forward.w3", "feed_forward.w2", "ffn_norm"),
    )


def _granite_hybrid(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return Group(_QKV, Fold("input_layernorm")), Group(("mamba.in_proj",), Fold("input_layernorm"))


def _nemotron_h(config: Mapping[str, Any]) -> tuple[Group, ...]:
    return (
        Group(("mixer.in_proj",), Fold("norm")),
        Group(("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"), Fold("norm")),
        Group(("mixer.up_proj",), Fold("norm")),
    )


def _feed(gate: str, up: str, down: str, norm: str) -> tuple[Group, ...]:
    return Group((gate, up), Fold(norm)), Group((down,), Fold(up))


def _phi3(config: Mapping[str, Any]) -> tuple[Group, ...]:
    heads, shared, size = _heads(config)
    values, width = (heads + shared) * size + np.arange(shared * size), int(config["intermediate_size"])
    return (
        Group(("self_attn.qkv_proj",), Fold("input_layernorm")),
        Group(("self_attn.o_proj",), None if shared < heads else Fold("self_attn.qkv_proj", values)),
        Group(("mlp.gate_up_proj",), Fold("post_attention_layernorm")),
        Group(("mlp.down_proj",), Fold("mlp.gate_up_proj", width + np.arange(width))),
    )


def _opt(config: Mapping[str, Any]) -> tuple[Group, ...]:
    before = config.get("do_layer_norm_before", True)  # else its norms come after the layers
    relu = config.get("activation_function", "relu") == "relu"  # which lets a positive factor through
    return (
        Group(
            _QKV,
            Fold("self_attn_layer_norm") if before else None,
        ),
        Group(("self_attn.out_proj",), Fold("self_attn.v_proj")),
        Group(("fc1",), Fold("final_layer_norm") if before else None),
        Group(("fc2",), Fold("fc1") if relu else None),
    )


def _gpt_neox(config: Mapping[str, Any]) -> tuple[Group, ...]:
    heads, _, size = _heads(config)
    values = (np.arange(heads)[:, None] * 3 * size + 2 * size + np.arange(size)).reshape(-1)
    return (
        Group(("attention.query_key_value",), Fold("input_layernorm")),
        Group(("attention.dense",), Fold("attention.query_key_value", values)),
        Group(("mlp.dense_h_to_4h",), Fold("post_attention_layernorm")),
        Group(("mlp.dense_4h_to_h",)),
    )


def _gpt2(config: Mapping[str, Any]) -> tuple[Group, ...]:
    size = int(config["n_embd"])
    return (
        Group(("attn.c_attn",), Fold("ln_1")),
        Group(("attn.c_proj",), Fold("attn.c_attn", 2 * size + np.arange(size))),
        Group(("mlp.c_fc",), Fold("ln_2")),
        Group(("mlp.c_proj",)),
    )


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the number of query heads, of key and value heads, and the numbers in a head."""
    heads = int(config["num_attention_heads"])
    size = config.get("head_dim") or int(config["hidden_size"]) // heads
    return heads, int(config.get("num_key_value_heads") or heads), int(size)


_TABLE: dict[str, Callable[[Mapping[str, Any]], tuple[Group, ...]]] = {
    "llama": _llama, "mistral": _llama, "qwen2": _llama, "qwen3": _llama, "granite": _llama, "smollm3": _llama,
    "qwen3_vl_text": _llama, "ministral3": _llama, "seed_oss": _llama, "hunyuan_v1_dense": _llama, "ernie4_5": _llama,
    "qwen3_moe": _llama, "glm4_moe": _llama, "minimax_m2": _llama, "mixtral": _llama, "gpt_oss": _llama,
    "llama4_text": _llama, "ernie4_5_moe": _llama, "qwen3_5_text": _zero_centered, "qwen3_5_moe_text": _zero_centered,
    "qwen3_next": _zero_centered, "gemma4_text": _gemma4, "gemma4_unified_text": _gemma4, "gemma3n_text": _gemma3n,
    "olmo3": _olmo2, "exaone4": _olmo2, "deepseek_v3": _latent, "glm4_moe_lite": _latent, "mistral4": _latent,
    "falcon_h1": _falcon_h1, "lfm2": _lfm2, "lfm2_moe": _lfm2, "granitemoehybrid": _granite_hybrid,
    "nemotron_h": _nemotron_h, "phi3": _phi3, "gemma2": _gemma, "gemma3_text": _gemma, "olmo2": _olmo2, "opt": _opt,
    "gpt_neox": _gpt_neox, "gpt2": _gpt2,
}  # fmt: skip
