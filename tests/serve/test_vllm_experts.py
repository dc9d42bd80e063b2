"""Adapters of a mixture's experts: what vLLM is told of them, and which it does not serve."""

import json
import shlex

import pytest

from backend.serve.engine import Served, Shown
from backend.serve.engines import vllm


@pytest.fixture
def adapter(tmp_path):
    def write(*parameters):
        settings = {"peft_type": "LORA", "r": 16, "target_parameters": list(parameters)}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        return tmp_path

    return write


EXPERTS = ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj")


def test_vllm_is_told_that_all_experts_are_in_one_matrix(adapter):
    lines = vllm.ENGINE.card(Shown(adapter(*EXPERTS), "me/x", {}, "you/base")).lines
    told = shlex.split(lines.splitlines()[-1])
    assert json.loads(told[told.index("--lora-modules") + 1]) == {"name": "x", "path": "x", "is_3d_lora_weight": True}
    assert "--enable-mixed-moe-lora-format" in told


def test_an_adapter_of_experts_is_served_with_a_gpu_alone(adapter, monkeypatch):
    served = Served(adapter(*EXPERTS), {"model_type": "qwen3_moe"}, adapter(*EXPERTS))
    monkeypatch.setattr(vllm, "gpus", lambda: ["a GPU"])
    assert vllm.ENGINE.serves(served) is None
    monkeypatch.setattr(vllm, "gpus", list)
    assert "Without a GPU vLLM serves no adapter of experts" in vllm.ENGINE.serves(served).reason


def test_experts_without_a_gate_are_not_served(adapter):
    made = adapter("model.layers.0.mixer.experts.up_proj", "model.layers.0.mixer.experts.down_proj")
    assert "with experts that have no gate" in vllm.ENGINE.serves(Served(made, {}, made)).reason
    assert vllm.ENGINE.card(Shown(made, "me/x", {}, "you/base")) is None
