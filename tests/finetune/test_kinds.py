"""A training with its defaults, then a merge, of models that are more than attention and a feed-forward."""

import json
import shutil

import pytest
import torch

from backend.errors import SpecError
from backend.finetune.options import FinetuneOptions
from backend.merge.merging import merge, merged
from backend.merge.options import MergeOptions
from backend.models.inspection import inspect
from backend.progress import silent
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.support.training import train

pytestmark = pytest.mark.real

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 64, "pad_token_id": 0}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16, "pad_token_id": 0}
KINDS = {
    "mixtral": EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
    "qwen2_moe": EXPERTS | {"num_experts": 4, "num_key_value_heads": 4, "shared_expert_intermediate_size": 64},
    "gpt_oss": EXPERTS | {"num_local_experts": 4, "head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16, "pad_token_id": 0},
    "granitemoehybrid": STATES
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 64},
}


def made(kind, tiny_model, folder):
    """Save a random model of a kind with the tiny model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    words = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | KINDS[kind], vocab_size=words)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_and_its_merge_come_to_their_end(kind, tiny_model, tmp_path):
    base, adapter, result = made(kind, tiny_model, tmp_path / kind), tmp_path / "s" / "o", tmp_path / "made"
    assert train(base, adapter, max_steps=1, packing=True).steps == 1
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["target_modules"]
    assert not settings["target_parameters"]
    result.mkdir()
    with Checkpoint.of(base) as weights, merged(weights, [adapter], MergeOptions(), silent()) as found:
        merge(found, Output(result), MergeOptions(), silent())
    assert inspect(str(result)).parameters == inspect(str(base)).parameters


@pytest.mark.parametrize(("kind", "module"), [("qwen2_moe", "down_proj"), ("mamba2", "out_proj")])
def test_a_layer_that_peft_does_not_train_is_refused_before_the_start(kind, module, tiny_model, tmp_path):
    facts = inspect(str(made(kind, tiny_model, tmp_path / kind)))
    with pytest.raises(SpecError, match=f"'{module}' is no linear layer of the model: choose among"):
        FinetuneOptions(dataset="demo", max_length=64, target_modules=(module,)).check(facts)


def test_experts_are_asked_for_where_there_are_some(tiny_model):
    with pytest.raises(SpecError, match=r"target_parameters: '.*' is no mixture of experts: choose none"):
        FinetuneOptions(dataset="demo", max_length=64, target_parameters="experts").check(inspect(str(tiny_model)))


def test_dora_is_not_for_experts():
    with pytest.raises(ValueError, match="use_dora: PEFT trains no experts so"):
        FinetuneOptions(dataset="demo", target_parameters="experts", use_dora=True)
