"""Heads and embeddings under other names: merged into what PEFT's model computed, tied or not."""

import pytest
import torch

from backend.merge.merging import merge, merged
from backend.merge.options import MergeOptions
from backend.progress import silent
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.support.adapters import save_adapter, with_peft

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LAYERS = {"gpt_neox": "dense_4h_to_h", "gpt2": "c_fc", "bloom": "dense_4h_to_h", "falcon": "dense_4h_to_h",
          "llama": "down_proj"}  # fmt: skip
EMBEDDINGS = {"gpt_neox": "embed_in", "gpt2": "wte", "bloom": "word_embeddings", "falcon": "word_embeddings"}
TOKENS = torch.arange(2, 22)[None]
TIES = {"ensure_weight_tying": True}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("gpt_neox", {"modules_to_save": ["lm_head"]}),
        ("gpt_neox", {"target_modules": ["lm_head"]}),
        ("gpt_neox", {"trainable_token_indices": {"embed_in": [3, 5], "lm_head": [7]}}),
        *((kind, {"modules_to_save": [EMBEDDINGS[kind]], **TIES}) for kind in ("gpt2", "bloom", "falcon")),
        *((kind, {"target_modules": [EMBEDDINGS[kind]], **TIES}) for kind in ("gpt2", "bloom", "falcon")),
        ("llama", {"modules_to_save": ["embed_tokens"], **TIES}),
        ("llama", {"target_modules": ["embed_tokens"], **TIES}),
    ],
)
def test_a_merge_computes_what_pefts_model_did(kind, given, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tied = {"tie_word_embeddings": True} if kind == "llama" else {}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **tied)).save_pretrained(tmp_path / "base")
    targets = [LAYERS[kind], *given.get("target_modules", ())]
    adapter = save_adapter(tmp_path / "base", tmp_path / "a", **given | {"target_modules": targets})
    made = tmp_path / "made"
    made.mkdir()
    options = MergeOptions(dtype="float32")
    with Checkpoint.of(tmp_path / "base") as weights, merged(weights, [adapter], options, silent()) as result:
        merge(result, Output(made), options, silent())
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(made)(TOKENS).logits
        theirs = with_peft(tmp_path / "base", adapter)(TOKENS).logits
    assert (found - theirs).abs().max() < 1e-4 * theirs.abs().max()
