"""Adapters that train single tokens, or parameters by name, are merged as PEFT merges them, or refused before."""

import json

import pytest
import torch

from backend.__main__ import main
from backend.errors import AdapterError, SpecError
from backend.hub.files import LocalFiles
from backend.merge.adapter import read_adapter
from backend.merge.on_hub import base_of
from backend.models.inspection import inspect
from tests.support.adapters import merge_to, resaved, save_adapter, save_model, with_peft

NEW = [3, 150, 7]


def trained_rows(weights):
    """Return rows of tokens numbers as after a training."""
    return {n: torch.randn_like(w) if "trainable_tokens" in n else w for n, w in weights.items()}


@pytest.mark.parametrize(
    ("tied", "tokens"),
    [
        (False, NEW),
        (False, {"embed_tokens": NEW, "lm_head": [9]}),
        (False, {"lm_head": [0, 199]}),
        (True, NEW),
        (True, {"embed_tokens": NEW}),
        (True, {"embed_tokens": NEW, "lm_head": [9]}),
    ],
)
def test_rows_of_tokens_take_the_place_of_the_base_models(tied, tokens, tmp_path):
    from transformers import AutoModelForCausalLM

    base = save_model(tmp_path / "base", dtype=torch.float32, tie_word_embeddings=tied)
    adapter = save_adapter(base, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=tokens)
    resaved(adapter, trained_rows)
    found, settings = merge_to(tmp_path / "merged", base, adapter)
    assert settings["tie_word_embeddings"] is ("lm_head.weight" not in found)
    assert ("lm_head.weight" in found) == (not tied or len(tokens) == 2)
    text = torch.arange(200)[None]
    with torch.inference_mode():
        tuned, before = with_peft(base, adapter)(text).logits, AutoModelForCausalLM.from_pretrained(base)(text).logits
        after = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(text).logits
    assert (after - tuned).abs().max() < 1e-4 < (before - tuned).abs().max()


def test_rows_of_a_weighted_adapter_are_a_mean_and_layers_are_added_to_them(tmp_path):
    base = save_model(tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(base, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=NEW)
    resaved(adapter, trained_rows)
    before, _ = merge_to(tmp_path / "none", base, save_adapter(base, tmp_path / "b", 1, target_modules=["k_proj"]))
    whole, _ = merge_to(tmp_path / "whole", base, adapter)
    half, _ = merge_to(tmp_path / "half", base, adapter, adapter_weights=[0.5])
    name = "model.embed_tokens.weight"
    assert torch.allclose(half[name], (before[name] + whole[name]) / 2, atol=1e-6)
    assert torch.equal(half[name][4:7], before[name][4:7])


def test_parameters_of_layers_that_are_named_are_merged(tmp_path):
    base = save_model(tmp_path / "base", dtype=torch.float32)
    named = ["self_attn.q_proj.weight", "mlp.up_proj.weight"]
    adapter = save_adapter(base, tmp_path / "a", target_modules=[], target_parameters=named)
    found, _ = merge_to(tmp_path / "merged", base, adapter)
    theirs = with_peft(base, adapter).merge_and_unload().state_dict()
    assert all(torch.allclose(values, theirs[name], atol=1e-6) for name, values in found.items())


EXPERTS = {"num_local_experts": 4, "intermediate_size": 40}
MORE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 12}


@pytest.mark.parametrize(("kind", "sizes"), [("mixtral", EXPERTS), ("qwen3_moe", MORE), ("olmoe", MORE)])
@pytest.mark.parametrize("targets", [["gate_up_proj", "down_proj"], ["gate_up_proj"], ["down_proj"]])
def test_experts_that_are_named_as_parameters_are_merged_one_by_one(kind, sizes, targets, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **common | sizes, num_key_value_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    named = [f"mlp.experts.{target}" for target in targets]
    adapter = save_adapter(tmp_path / "base", tmp_path / "a", target_modules=["q_proj"], target_parameters=named)
    merge_to(tmp_path / "merged", tmp_path / "base", adapter)
    theirs = with_peft(tmp_path / "base", adapter).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    assert all(torch.allclose(values, theirs[name], atol=1e-6) for name, values in found.items())
    changed = {name.rpartition(".")[2] for name, values in found.items() if not torch.equal(values, plain[name])}
    assert {*targets} <= changed


@pytest.mark.parametrize(("kind", "sizes"), [("mixtral", EXPERTS), ("qwen3_moe", MORE), ("olmoe", MORE)])
def test_all_that_peft_calls_linear_of_a_mixture_is_merged(kind, sizes, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **common | sizes, num_key_value_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "base", tmp_path / "a", target_modules="all-linear")
    assert "gate.weight" in json.loads((adapter / "adapter_config.json").read_text())["target_parameters"]
    merge_to(tmp_path / "merged", tmp_path / "base", adapter)
    theirs = with_peft(tmp_path / "base", adapter).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.allclose(values, theirs[name], atol=1e-6) for name, values in found.items())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"target_parameters": ["mlp.router.scale"]},
            "neither weights of layers nor a mixture's experts: merge it with",
        ),
        ({"trainable_token_indices": [1, 2]}, "which trainable_token_indices does not number"),
        ({"trainable_token_indices": {"wte": NEW}}, "which trainable_token_indices does not number"),
        ({"trainable_token_indices": [1, 2, "3"]}, "which trainable_token_indices does not number"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_refused_when_they_are_read(setting, words, tmp_path):
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=NEW)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(SpecError, match=words):
        read_adapter(LocalFiles(adapter), "a")


def test_tokens_that_the_base_model_does_not_have_are_refused(tmp_path):
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=NEW)
    smaller = save_model(tmp_path / "smaller", vocab_size=100)
    with pytest.raises(
        SpecError, match=r"model.embed_tokens.weight \(its tokens\)' of 151 × 48, and 'smaller' has 100"
    ):
        merge_to(tmp_path / "merged", smaller, adapter)


def test_an_adapter_of_a_local_folder_sends_nobody_to_the_hub(hub, tmp_path, make_adapter, capsys):
    adapter = make_adapter(base_model=None)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "my-own"}))
    with pytest.raises(SpecError, match="was tuned on a local folder, 'my-own': give that folder"):
        base_of([str(adapter)], None)
    assert main(["merge", str(adapter), "--output", str(tmp_path / "out")]) == 1
    assert "with --base" in capsys.readouterr().err
    with pytest.raises(
        AdapterError, match="tuned on a local folder, 'my-own': choose that folder"
    ) as taken_for_a_model:
        inspect(str(adapter))
    assert taken_for_a_model.value.base_model is None
    assert hub.requests == []
