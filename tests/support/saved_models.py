"""Models of many types, saved small."""

import torch

_SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
_SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
THREE_BLOCKS = {
    "llama": _SIZES,
    "gpt2": {"vocab_size": 128, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4},
    "qwen3_moe": _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16},
}
"""Configs of tiny models with three blocks, by model type."""


def save(config, folder, dtype=torch.bfloat16, **options):
    """Save a random model of a config."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, **options)
    return folder


def llama(**changes):
    from transformers import LlamaConfig

    sizes = {"vocab_size": 100, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2}
    return LlamaConfig(**sizes | {"num_attention_heads": 2, "num_key_value_heads": 1} | changes)


def models():
    """Models that differ in what could go wrong: type, odd sizes, tied embeddings, turned weights, shards."""
    from transformers import GPT2Config, Qwen3MoeConfig

    gpt2 = GPT2Config(vocab_size=100, n_positions=32, n_embd=36, n_layer=2, n_head=2)
    moe = Qwen3MoeConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    yield "bfloat16", llama(), {}
    yield "float16", llama(), {"dtype": torch.float16}
    yield "float32", llama(), {"dtype": torch.float32}
    yield "tied", llama(tie_word_embeddings=True), {}
    yield "biases", llama(attention_bias=True, mlp_bias=True), {}
    yield "shards", llama(), {"max_shard_size": 4000}
    yield "gpt2", gpt2, {}
    yield "mixture of experts", moe, {}


CASES = list(models())
