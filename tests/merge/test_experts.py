"""Adapters of all experts of a mixture, merged into the one tensor that they lie in, as PEFT merges them."""

import pytest
import torch

from backend.models.loading import load_causal_lm
from backend.progress import silent
from tests.support.adapters import merge_to, taught
from tests.support.family_models import make


@pytest.mark.real
@pytest.mark.parametrize("name", ["gpt-oss", "Gemma 4 MoE", "Llama 4", "Granite 4 hybrid"])
@pytest.mark.parametrize("targets", [("gate_up_proj", "down_proj"), ("down_proj",)])
def test_experts_in_one_tensor_are_merged_as_peft_merges_them(name, targets, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = make(name, tmp_path / "base")
    plain = load_causal_lm(base, silent()).float()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    named = [f"experts.{target}" for target in targets]
    model = get_peft_model(plain, LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=named))
    taught(model)
    model.save_pretrained(tmp_path / "adapter")
    merge_to(tmp_path / "merged", base, tmp_path / "adapter", dtype="float32")
    theirs = model.merge_and_unload().state_dict()
    found = load_causal_lm(tmp_path / "merged", silent()).state_dict()
    assert found.keys() == theirs.keys()
    assert all(torch.allclose(values, theirs[key], atol=1e-5) for key, values in found.items())
    changed = {key.rpartition(".")[2] for key, values in found.items() if not torch.equal(values, before[key])}
    assert changed == {*targets}
