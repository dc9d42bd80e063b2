"""vLLM reads wrappers, hybrids and mixtures in GPTQ and AWQ as our own unpacking does."""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from backend.model_folder import CONFIG
from backend.processes.child import ROOT
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.windows import Windows
from backend.quantize.layouts import LAYOUTS
from backend.quantize.packed import load
from backend.serve.engines.vllm_environment import interpreter
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.support.family_models import make
from tests.support.pictures import make_qwen

pytestmark = [pytest.mark.real, pytest.mark.skipif(interpreter() is None, reason="needs vLLM: make vllm")]

SIZES = {"head_dim": 64}
"""What vLLM's kernels take."""

WIDE = {"hidden_size": 256, "intermediate_size": 512, "shared_intermediate_size": 512, "num_local_experts": 0}
WIDE |= {"mamba_d_head": 64, "mamba_d_state": 64, "mamba_chunk_size": 256}


MAKERS = {"Qwen3-VL": make_qwen, "Qwen3.5 dense": partial(make_qwen, name="Qwen3.5 dense")}
"""Families of which vLLM wants the processor too."""


def scored(folder, tokens):
    """Return the logarithms of the probabilities of tokens, each after those before it, as vLLM computes them."""
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
    quiet |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    script = Path(ROOT, "tests/support/vllm_scores.py")
    command = [str(interpreter()), str(script), str(folder), ",".join(map(str, tokens))]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet, cwd=folder)
    assert found.returncode == 0, found.stderr[-2000:]
    return np.array(json.loads(found.stdout.splitlines()[-1]))


def check(name, layout, folder, **sizes):
    method = "awq" if layout == "awq" else "gptq"
    random = np.random.default_rng(0)
    source, made = MAKERS.get(name, partial(make, name))(folder / "source", **SIZES, **sizes), folder / layout
    made.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != CONFIG:
            shutil.copy(path, made)
    with Checkpoint.of(source) as weights:
        options = METHODS[method].Options(group_size=32, layout=layout)
        windows = Windows("random", random.integers(2, 499, (8, 64)))
        METHODS[method].quantize(weights, Output(made), options, windows, silent())
    tokens = random.integers(2, 499, 24)
    with torch.inference_mode():
        logits = load(made, silent())(input_ids=torch.from_numpy(tokens)[None]).logits.float()[0]
    ours = logits.log_softmax(-1)[torch.arange(23), torch.from_numpy(tokens[1:])].numpy()
    theirs = scored(made, tokens)
    assert np.abs(theirs - ours).max() < 0.1  # both compute in bfloat16
    assert ours.std() > 0.05


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_gpu_a_hybrid_with_an_odd_layer_is_served(layout, tmp_path):
    check("Granite 4 hybrid", layout, tmp_path, **WIDE)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
@pytest.mark.parametrize("name", ["Qwen3-VL", "Qwen3.5 dense"])
def test_without_a_gpu_wrappers_are_served(name, layout, tmp_path):
    wide = {"linear_key_head_dim": 64, "linear_value_head_dim": 64} if name == "Qwen3.5 dense" else {}
    check(name, layout, tmp_path, **wide)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["Qwen3 MoE", "Qwen3.5 MoE", "GLM-4.6", "Gemma 4 MoE", "Nemotron-3", "LFM2 MoE"])
def test_with_a_gpu_experts_are_served(name, layout, tmp_path):
    check(name, layout, tmp_path, hidden_size=256, intermediate_size=512, moe_intermediate_size=128)
