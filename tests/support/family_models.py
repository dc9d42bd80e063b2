"""A tiny model of every family that people pick, made from transformers' own config class: two layers or a few more.

The weights are what people pick to be quantized and to be tuned, each adding to about 100 over all rows.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.tokenizers_made import make_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 1,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_TOWER: dict[str, Any] = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
    "num_position_embeddings": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
GEMMA_TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 16,
}  # fmt: skip
MLA: dict[str, Any] = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip


PICTURE = 500
"""The token that stands for a piece of a picture."""


class Family(NamedTuple):
    """A row.

    Attributes:
        model_type: As its config says.
        quantize: Of 100 models that people quantize, how many are of it.
        tune: Of 100 that people tune.
        text: Fields of the text model's config beside SIZES; a value of `...` leaves one of those out.
        tower: Fields of what reads pictures; None: nothing does.
        top: Fields of the config around both.
        package: That the tower is built with, beside transformers.
    """

    model_type: str
    quantize: float
    tune: float
    text: Mapping[str, Any] = {}
    tower: Mapping[str, Any] | None = None
    top: Mapping[str, Any] = {}
    package: str = ""


FAMILIES: dict[str, Family] = {
    "Qwen3.5 dense": Family("qwen3_5", 17, 12, DELTA, QWEN_TOWER),
    "Qwen3.5 MoE": Family("qwen3_5_moe", 10, 5, DELTA | EXPERTS | {"shared_expert_intermediate_size": 32}, QWEN_TOWER),
    "Qwen3": Family("qwen3", 8, 14),
    "Gemma 4": Family("gemma4", 6, 7, SLIDING | {
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 512,
    }, GEMMA_TOWER),
    "Gemma 4 MoE": Family("gemma4", 4, 2, SLIDING | EXPERTS | {
        "enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0,
    }, GEMMA_TOWER),
    "Gemma 4 unified": Family("gemma4_unified", 2, 2, SLIDING, {
        "patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32,
    }),
    "Llama": Family("llama", 6, 10),
    "Qwen2.5": Family("qwen2", 4, 7),
    "Qwen3 MoE": Family("qwen3_moe", 4, 3, EXPERTS),
    "gpt-oss": Family("gpt_oss", 3, 4, {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}),
    "Qwen3-VL": Family("qwen3_vl", 4, 3, {}, QWEN_TOWER | {"deepstack_visual_indexes": [0]}),
    "Qwen3-Next": Family("qwen3_next", 2, 1, DELTA | EXPERTS | {"shared_expert_intermediate_size": 32}),
    "Qwen3.8-Flash-Next": Family("qwen4_exp", 2, 0, DELTA | EXPERTS | {
        "shared_expert_intermediate_size": 32, "hc_count": 2, "hc_lowrank": 16, "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 32, "indexer_compress_ratio": 4,
        "ple_layer_ids": [], "ple_embed_dim": 16, "ngram_vocab_size_base": 64, "split_ngram_parts": 1,
    }, QWEN_TOWER),
    "Gemma 3": Family("gemma3", 3, 5, SLIDING, TOWER, {"mm_tokens_per_image": 4}),
    "Gemma 3 text": Family("gemma3_text", 1, 4),
    "Gemma 3n": Family("gemma3n", 1, 1, {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16,
        "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 512,
        "laurel_rank": 32, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
        "pad_token_id": 511,  # whose embedding is zeros, of which a square root has no gradient: no text has it
    }, {"hidden_size": 32}, {"audio_config": {
        "hidden_size": 32, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "input_feat_size": 32,
        "sscp_conv_channel_size": (8, 4),
    }}, "timm"),
    "Mistral Small": Family("mistral3", 3, 3, {"model_type": "mistral"}, TOWER | {"head_dim": 16, "image_size": 56}),
    "Ministral 3": Family("mistral3", 2, 3, {"model_type": "ministral3"}, TOWER | {"head_dim": 16, "image_size": 56}),
    "Mistral": Family("mistral", 1, 3),
    "Mistral Small 4": Family("mistral4", 1, 0, MLA | {"head_dim": ...}),
    "Phi-4": Family("phi3", 1, 3),
    "GLM-4.7-Flash": Family("glm4_moe_lite", 2, 1, MLA),
    "GLM-4.6": Family("glm4_moe", 1, 0.5, MLA | {"head_dim": 16, "num_key_value_heads": 2}),
    "GLM-5": Family("glm_moe_dsa", 2, 0, MLA | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 16}),
    "DeepSeek V3": Family("deepseek_v3", 1, 0, MLA),
    "DeepSeek V4": Family("deepseek_v4", 1, 0, {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 32, "o_groups": 2, "o_lora_rank": 32,
    }),
    "Nemotron-3": Family("nemotron_h", 1.5, 1, {
        "layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4, "ssm_state_size": 16,
        "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
    }),
    "Granite 4 hybrid": Family("granitemoehybrid", 1, 1.5, MAMBA | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention"],
    }),
    "Granite": Family("granite", 0.5, 0.5),
    "Muse Glimmer": Family("muse_glimmer", 1.5, 1, SLIDING, TOWER | {
        "pos_emb_height": 2, "pos_emb_width": 2, "max_position_embeddings": 4,
    }, {"out_hidden_size": 128, "projector_hidden_size": 64}),
    "SmolLM3": Family("smollm3", 0.3, 1),
    "OLMo 3": Family("olmo3", 0.3, 0.5),
    "LFM2": Family("lfm2", 0.4, 1, {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128}),
    "LFM2 MoE": Family("lfm2_moe", 0.3, 0.5, EXPERTS | {
        "layer_types": ["conv", "full_attention"], "num_dense_layers": 1,
    }),
    "Falcon-H1": Family("falcon_h1", 0.3, 0.5, MAMBA | {"mamba_d_ssm": 128}),
    "Llama 4": Family("llama4", 0.5, 0.3, {
        "num_local_experts": 4, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 1,
    }, TOWER | {
        "image_size": 56, "intermediate_size": 128, "vision_output_dim": 32, "projector_input_dim": 32,
        "projector_output_dim": 32,
    }),
    "MiniMax M2": Family("minimax_m2", 0.8, 0, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Kimi K2.5": Family("kimi_k25", 0.8, 0, MLA, TOWER, {"projection_hidden_size": 32}),
    "Hunyuan": Family("hunyuan_v1_dense", 0.4, 0.5),
    "Seed-OSS": Family("seed_oss", 0.4, 0.3),
    "EXAONE 4": Family("exaone4", 0.5, 0.5, SLIDING),
    "ERNIE 4.5": Family("ernie4_5", 0.3, 0.5),
    "OPT": Family("opt", 0.1, 0.4, {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "GPT-2": Family("gpt2", 0.1, 0.4, {"n_embd": 64, "n_layer": 2, "n_head": 4, "intermediate_size": 256}),
    "GPT-NeoX": Family("gpt_neox", 0.1, 0.2),
}  # fmt: skip


DOES = ("nf4", "int8", "fp8", "mxfp4", "cast", "gptq", "awq", "tune", "merge")
"""What is done with each."""

REFUSED: dict[str, dict[str, str]] = {
    "GPT-2": dict.fromkeys(
        ("fp8", "mxfp4"),
        "readers of compressed-tensors do not find its layers, which lie transposed: choose nf4 or gptq",
    ),
}
"""What is refused of a row, and why, in the words of the table of families."""


def config_of(family: Family, **sizes: int) -> Any:
    """Return the config of a family's tiny model.

    Args:
        family: A row.
        sizes: Fields of the text model that are other than SIZES.
    """
    from transformers import CONFIG_MAPPING

    text = {name: value for name, value in {**SIZES, **family.text, **sizes}.items() if value is not ...}
    made = CONFIG_MAPPING[family.model_type]
    if family.tower is None:
        return made(**text, **family.top)
    config = made(text_config=text, vision_config=dict(family.tower), **family.top)
    named = "image_token_index" if family.model_type == "gemma3" else "image_token_id"
    setattr(config, named, PICTURE)
    return config


def make(name: str, folder: Path, **sizes: int) -> Path:
    """Write a family's tiny model, in bfloat16, with random weights and a tokenizer of letters.

    Args:
        name: Of the row.
        folder: Is made.
        sizes: Fields of the text model that are other than SIZES.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from backend.models.native import text_types
    from backend.models.towers import stand_in

    stand_in()
    family = FAMILIES[name]
    text = family.tower is None and family.model_type in text_types()
    torch.manual_seed(0)
    made = (AutoModelForCausalLM if text else AutoModelForImageTextToText).from_config(
        config_of(family, **sizes), dtype=torch.bfloat16
    )
    for parameter in made.parameters():
        if parameter.dim() > 1 and not parameter.any():  # some projectors begin with nothing
            torch.nn.init.normal_(parameter, std=0.02)
    made.save_pretrained(folder)
    if family.package and find_spec(family.package) is None:
        _add_tower(folder / "model.safetensors")
    make_tokenizer().save_pretrained(folder)
    return folder


def _add_tower(file: Path) -> None:
    """Add tensors of a tower that only a package which is not here can build, by the names of published ones."""
    import torch
    from safetensors.torch import load_file, save_file

    shapes = {"conv_stem.conv.weight": (8, 3, 3, 3), "blocks.0.0.bn1.weight": (8,), "msfa.ffn.pw_exp.weight": (8, 8)}
    tower = {f"model.vision_tower.timm_model.{name}": torch.randn(shape) for name, shape in shapes.items()}
    save_file(load_file(file) | {name: t.bfloat16() for name, t in tower.items()}, file, {"format": "pt"})


def inputs(name: str, text: Any) -> dict[str, Any]:
    """Return what a family reads: a picture among words, or text, [rows, tokens]."""
    plain = FAMILIES[name].tower is None or FAMILIES[name].package
    return {"input_ids": text} if plain else picture(name)


def picture(name: str) -> dict[str, Any]:
    """Return the inputs of a small picture among words, as a family's processor makes them."""
    import torch

    random = torch.Generator().manual_seed(0)
    family = FAMILIES[name]
    tower, kind = family.tower or {}, family.model_type
    side = tower.get("patch_size", 14)
    if kind in ("gemma4", "gemma4_unified"):  # nine patches, of which the tower makes one piece
        places = torch.tensor([[[x, y] for y in range(3) for x in range(3)]])
        width = 3 * (side * (3 if kind == "gemma4_unified" else 1)) ** 2
        pixels: Any = {"pixel_values": torch.rand(1, 9, width, generator=random), "image_position_ids": places}
        pieces = 9 if kind == "gemma4_unified" else 1
    elif "image_size" in tower and kind not in ("muse_glimmer", "kimi_k25"):
        size, pieces = tower["image_size"], 4
        pixels = {"pixel_values": torch.rand(1, 3, size, size, generator=random)}
        pixels |= {"image_sizes": torch.tensor([[size, size]])} if kind == "mistral3" else {}
    else:
        grid, shape = torch.tensor([[1, 2, 2]]), (4, 3 * 2 * side**2)
        shape = (4, 3, side, side) if kind == "kimi_k25" else shape
        pixels = {"pixel_values": torch.rand(*shape, generator=random), "image_grid_thw": grid}
        pieces = 1
    ids = torch.tensor([[5, 6, 7, *[PICTURE] * pieces, 8, 9, 10]])
    token_types = (ids == PICTURE).long()
    extra = {"mm_token_type_ids": token_types} if "image_grid_thw" in pixels or "gemma4" in kind else {}
    extra |= {"token_type_ids": token_types} if kind == "gemma3" else {}
    return {"input_ids": ids, **pixels, **extra}
