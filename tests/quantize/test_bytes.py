"""Bytes of results, as a version of November 2026 wrote them: moving code changes none.

What a calibration computes may differ in a last digit from one processor to the next. Of GPTQ and AWQ as they are used,
names, shapes, types and config.json are compared; the bytes are those of plain rounding, which is exact everywhere.
"""

import json
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.merge.merging import merge, merged
from backend.merge.options import MergeOptions
from backend.options import parse
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.windows import Windows
from backend.weights.checkpoint import Checkpoint
from backend.weights.header import read_header
from backend.weights.output import Output

EXPECTED = json.loads((Path(__file__).parent / "bytes.json").read_text(encoding="utf-8"))

HIDDEN, INNER, WORDS = 64, 96, 128
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": WORDS,
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip

STREAMED = {
    "nf4": ("nf4", {}),
    "nf4, plain scales": ("nf4", {"bnb_4bit_use_double_quant": False}),
    "nf4, in shards": ("nf4", {"max_shard_size": 40_000}),
    "fp4": ("fp4", {}),
    "int8": ("int8", {}),
    "cast": ("cast", {"dtype": "float16"}),
    "fp8": ("fp8", {}),
    "mxfp4": ("mxfp4", {}),
    "w8a16": ("w8a16", {"group_size": 32}),
    "w4a16": ("w4a16", {"group_size": 32}),
}

ROUNDED = {"group_size": 32, "scale_search": False, "error_feedback": False, "clip_search": False}
CALIBRATED = {
    "gptq": ("gptq", ROUNDED),
    "gptq, 3 bits": ("gptq", ROUNDED | {"bits": 3}),
    "gptq, 8 bits": ("gptq", ROUNDED | {"bits": 8, "group_size": -1}),
    "gptq, other zeros": ("gptq", ROUNDED | {"sym": False}),
    "awq": ("awq", ROUNDED),
}


class Numbers:
    """Numbers that every version of Python makes the same of a seed, exact in bfloat16."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def tensor(self, *shape: int) -> torch.Tensor:
        """Return bfloat16 numbers between -0.25 and 0.25."""
        raw = np.frombuffer(self._random.randbytes(int(np.prod(shape))), np.int8).astype(np.float32)
        return torch.from_numpy(raw / 512).reshape(shape).bfloat16()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, numbers = tmp_path_factory.mktemp("model") / "tiny", Numbers(0)
    folder.mkdir()
    tensors = {
        "model.embed_tokens.weight": numbers.tensor(WORDS, HIDDEN),
        "model.norm.weight": 1 + numbers.tensor(HIDDEN),
        "lm_head.weight": numbers.tensor(WORDS, HIDDEN),
    }
    for layer in range(2):
        start = f"model.layers.{layer}"
        tensors |= {f"{start}.{name}.weight": numbers.tensor(*shape) for name, shape in LINEARS.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{start}.{name}.weight"] = 1 + numbers.tensor(HIDDEN)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder, numbers, tensors = tmp_path_factory.mktemp("adapter") / "lora", Numbers(1), {}
    folder.mkdir()
    for layer in range(2):
        for name, (outputs, inputs) in LINEARS.items():
            start = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{start}.lora_A.weight"] = numbers.tensor(4, inputs).float()
            tensors[f"{start}.lora_B.weight"] = numbers.tensor(outputs, 4).float()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = [name.rpartition(".")[2] for name in LINEARS]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "me/tiny"}))
    return folder


def windows():
    return Windows("numbers", np.random.default_rng(0).integers(0, WORDS, (4, 32)))


def quantized(model, folder, method, options, *calibration):
    module = METHODS[method]
    with Checkpoint.of(model) as weights:
        module.quantize(weights, Output(folder), module.Options(**options), *calibration, silent())
    return folder


def hashes(folder):
    """Return the sha256 of each file."""
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("case", STREAMED)
def test_a_result_that_is_computed_piece_by_piece_has_the_bytes_that_it_had(case, model, tmp_path):
    assert hashes(quantized(model, tmp_path, *STREAMED[case])) == EXPECTED[case]


@pytest.mark.parametrize("case", CALIBRATED)
def test_a_result_in_the_layout_of_gptq_or_awq_has_the_bytes_that_it_had(case, model, tmp_path):
    assert hashes(quantized(model, tmp_path, *CALIBRATED[case], windows())) == EXPECTED[case]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_calibrated_result_has_the_tensors_and_the_config_that_it_had(method, model, tmp_path):
    quantized(model, tmp_path, method, {"group_size": 32}, windows())
    tensors = [[t.name, t.dtype, *t.shape] for t in read_header(tmp_path / "model.safetensors").tensors]
    found = {"tensors": sha256(json.dumps(tensors).encode()).hexdigest()}
    found["config.json"] = sha256((tmp_path / "config.json").read_bytes()).hexdigest()
    assert found == EXPECTED[f"{method}, calibrated"]


@pytest.mark.parametrize("into", ["original", "nf4"])
def test_a_merged_model_has_the_bytes_that_it_had(into, model, adapter, tmp_path):
    given = {"adapters": [str(adapter)], "merge_into": into}
    options = parse(MergeOptions, given, context={"paths": True})
    with Checkpoint.of(model) as weights, merged(weights, [adapter], options, silent()) as result:
        merge(result, Output(tmp_path), options, silent())
    assert hashes(tmp_path) == EXPECTED[f"merged into {into}"]
