"""A mixture of experts whose experts stay as they are is not called quantized without a word."""

import json

import pytest
import torch

from backend.__main__ import main
from backend.artifacts.sealing import open_artifact
from backend.cli.words import needs
from backend.models.inspection import inspect
from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.publish.card.card import build_card
from backend.quantize import METHODS
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
from backend.weights.anatomy import is_linear
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from ui.recipe.sidebar import _costs

SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
KINDS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama": {},
}


@pytest.fixture(params=KINDS)
def model(request, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SIZES | KINDS[request.param])
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@pytest.mark.parametrize("method", ["nf4", "int8", "cast"])
def test_the_estimate_says_what_share_of_a_mixture_is_quantized(model, method, tmp_path):
    facts = inspect(str(model))
    recipe = parse_recipe({"base_model": str(model), "stages": [{"stage": "quantize", "method": method}]}, paths=True)
    needed = estimate(recipe, facts, tmp_path)
    linear = sum(tensor.elements for tensor in facts.tensors if is_linear(tensor))
    words = f"{linear / facts.parameters:.1%} of its parameters"
    told = model.name != "llama" and method != "cast"
    assert (words in needs(needed)) == told
    assert (words in _costs(recipe, facts, tmp_path, None)) == told


def test_what_is_quantized_of_a_mixture_is_what_transformers_loads(model, tmp_path):
    with Checkpoint.of(model) as weights:
        METHODS["nf4"].quantize(weights, Output(tmp_path), METHODS["nf4"].Options(), silent())
    tokens = torch.arange(2, 22)[None]
    with torch.inference_mode():
        before, after = (load_causal_lm(folder, silent())(tokens).logits.float() for folder in (model, tmp_path))
    assert (after - before).abs().max() < 0.7 * before.abs().max()


@pytest.mark.parametrize("kind", [*KINDS, "ernie4_5_moe"])
def test_experts_are_planned_as_integers_one_by_one(kind, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    given = KINDS.get(kind, {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64})
    config = AutoConfig.for_model(kind, **SIZES | given)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    facts, options = inspect(str(tmp_path)), METHODS["gptq"].Options(group_size=32)
    options.check(facts)
    planned = options.plan(facts.tensors, facts.config)
    names = [name for shard in planned.shards for name in shard.names if ".experts.3." in name]
    layers = 0 if kind == "llama" else 2 if kind != "ernie4_5_moe" else 1  # the first of which has no experts there
    assert sum(name.endswith(".qweight") for name in names) == 3 * layers
    assert not any(name.endswith(".weight") for name in names)
    assert planned.share is None


@pytest.mark.parametrize("model", ["qwen3_moe"], indirect=True)
def test_log_result_and_card_say_the_share_too(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    assert main(["quantize", str(model), "--method", "nf4", "--output", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    artifact = open_artifact(tmp_path / "out")
    assert 0 < artifact.quantized_share < 0.2
    share = f"{artifact.quantized_share:.1%}"
    assert "The experts of this mixture are not quantized" in said["warnings"][0]
    card = build_card(tmp_path / "out", None)
    assert f"with {share} of its weights quantized to 4 bits, its experts as they were" in card
    assert f"The experts of this mixture are not quantized: {share}" in card
