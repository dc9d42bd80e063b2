"""vLLM computes the formats of compressed-tensors as we read them: W8A8 and NVFP4 with inputs that are rounded, too."""

import shutil

import numpy as np
import pytest
import torch

from backend.model_folder import CONFIG
from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.windows import Windows
from backend.quantize.engine_rounding import round_as_engines
from backend.serve.engines.vllm_environment import interpreter
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.serve.test_vllm_families import SIZES, scored
from tests.support.family_models import make
from tests.support.typed import succeeds

pytestmark = [pytest.mark.real, pytest.mark.skipif(interpreter() is None, reason="needs vLLM: make vllm")]


WHOLE = {"hidden_size": 128, "intermediate_size": 256}
"""Blocks of 128."""


def check(method, folder, **options):
    random = np.random.default_rng(0)
    source, made = make("Llama", folder / "source", **SIZES, **WHOLE), folder / method
    made.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != CONFIG:
            shutil.copy(path, made)
    chosen = METHODS[method].Options(**options)
    with Checkpoint.of(source) as weights:
        read = [] if chosen.streams else [Windows("random", random.integers(2, 99, (8, 64)))]
        METHODS[method].quantize(weights, Output(made), chosen, *read, silent())
    model, tokens = load_causal_lm(made, silent()), random.integers(2, 99, 24)
    round_as_engines(model, made)
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(tokens)[None]).logits.float()[0]
    ours = logits.log_softmax(-1)[torch.arange(23), torch.from_numpy(tokens[1:])].numpy()
    assert np.abs(scored(made, tokens) - ours).mean() < 0.1 * ours.std()  # both compute in bfloat16
    assert ours.std() > 0.05


def test_without_a_gpu_integers_are_multiplied_by_integers_with_a_cache_in_8_bits(tmp_path):
    check("w8a8", tmp_path, kv_cache_dtype="fp8")


def test_without_a_gpu_floats_of_8_bits_are_served(tmp_path):
    check("fp8", tmp_path)


BRIEF = {"w4a16": ["--group-size", "64"], "w8a8": ["--num-calibration-samples", "4", "--no-error-feedback"]}


@pytest.mark.parametrize("method", BRIEF)
def test_without_a_gpu_the_demo_model_answers_in_integers(method, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))
    made = str(tmp_path / "made")
    succeeds(capsys, "quantize", "demo", "--method", method, *BRIEF[method], "--output", made)
    asked = ["--prompt", "Which city is the capital of France?", "--max-tokens", "16", "--temperature", "0"]
    assert "Paris" in str(succeeds(capsys, "chat", made, "--engine", "vllm", *asked))


STREAMED = [
    ("fp8", {}),
    ("fp8", {"strategy": "block"}),
    ("mxfp4", {}),
    ("w8a16", {"group_size": 32}),
    ("w4a16", {"group_size": 32}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "options"), STREAMED, ids=str)
def test_with_a_gpu_what_needs_no_calibration_is_served(method, options, tmp_path):
    check(method, tmp_path, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("method", ["w8a8", "nvfp4"])
def test_with_a_gpu_both_are_served_with_a_cache_in_16_or_8_bits(method, kv_cache_dtype, tmp_path):
    check(method, tmp_path, kv_cache_dtype=kv_cache_dtype)
