"""Adapters of models whose class has other names for its layers than their files."""

import pytest
import torch

from backend.errors import SpecError
from backend.models.loading import load_causal_lm
from backend.progress import silent
from tests.support.adapters import TINY, merge_to, resaved, save_adapter, save_model, taught
from tests.support.family_models import make


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("DeepSeek V4", {"target_modules": ["kv_proj", "o_b_proj", "lm_head"]}),
        ("DeepSeek V4", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
        ("MiniMax M2", {"target_parameters": ["mlp.gate.weight", "experts.down_proj"]}),
    ],
)
def test_an_adapter_is_merged_into_files_that_have_other_names(name, targets, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = make(name, tmp_path / "base")
    options = LoraConfig(r=2, lora_alpha=6, **{"target_modules": []} | targets)
    model = get_peft_model(load_causal_lm(base, silent()).float(), options)
    taught(model)
    model.save_pretrained(tmp_path / "adapter")
    before = load_causal_lm(base, silent()).float().state_dict()
    merge_to(tmp_path / "merged", base, tmp_path / "adapter", dtype="float32")
    found, theirs = load_causal_lm(tmp_path / "merged", silent()).state_dict(), model.merge_and_unload().state_dict()
    assert all(torch.allclose(values, theirs[key], atol=1e-5) for key, values in found.items())
    assert sum(not torch.equal(values, before[key]) for key, values in found.items()) >= 4


def test_names_that_nobody_knows_are_refused(tmp_path):
    base = save_model(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=TINY)
    resaved(adapter, lambda tensors: {name.replace("q_proj", "query"): tensor for name, tensor in tensors.items()})
    with pytest.raises(SpecError, match="has other names for its layers than its files, so merge it with PEFT"):
        merge_to(tmp_path / "merged", base, adapter)
