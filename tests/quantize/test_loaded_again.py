"""Results in bitsandbytes' formats are what transformers loads, whatever their sizes, types and skipped layers."""

import json

import pytest
import torch

from backend.errors import SpecError
from backend.models.inspection import inspect
from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.quantize import METHODS
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
TOKENS = torch.arange(2, 22)[None]


def saved(folder, kind, dtype=torch.bfloat16, said=True, **sizes):
    """Save a random model; its config says its type only where that is said."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | sizes)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    if not said:
        fields.pop("dtype")
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def quantized(method, source, folder, **options):
    folder.mkdir()
    chosen = METHODS[method].Options(**options)
    chosen.check(inspect(str(source)))
    with Checkpoint.of(source) as weights:
        METHODS[method].quantize(weights, Output(folder), chosen, silent())
    return folder


def logits(folder):
    with torch.inference_mode():
        return load_causal_lm(folder, silent())(TOKENS).logits.float()


def assert_alike(one, other):
    assert (one - other).abs().max() < 0.6 * other.abs().max()


@pytest.mark.parametrize("method", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt_neox", "biogpt"])
def test_with_layers_that_were_skipped(kind, method, tmp_path):
    layer = {"gpt_neox": "dense_4h_to_h", "biogpt": "fc2"}.get(kind, "down_proj")
    sizes = {"head_dim": 16, "num_key_value_heads": 2} if kind == "gemma" else {}
    base = saved(tmp_path / "base", kind, intermediate_size=128, **sizes)
    assert_alike(logits(quantized(method, base, tmp_path / "q", llm_int8_skip_modules=[layer])), logits(base))


@pytest.mark.parametrize("module", ["mlp", "layers", "model.layers.0", "model.layers.1.mlp.down_proj", "proj"])
def test_a_part_of_a_path_is_refused_to_skip(module, tmp_path):
    base = saved(tmp_path / "base", "llama", intermediate_size=128)
    with pytest.raises(SpecError, match=r"is no linear layer of the model: choose among down_proj, gate_proj"):
        quantized("nf4", base, tmp_path / "q", llm_int8_skip_modules=[module])


@pytest.mark.parametrize("method", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "llama"])
def test_where_the_config_says_no_type(kind, method, tmp_path):
    local = {"attention_types": [[["global", "local"], 1]]} if kind == "gpt_neo" else {}
    base = saved(tmp_path / "base", kind, said=False, **local)
    made = quantized(method, base, tmp_path / "q")
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    assert_alike(logits(made), logits(base))
    recipe = parse_recipe({"base_model": str(base), "stages": [{"stage": "quantize", "method": method}]}, paths=True)
    files = estimate(recipe, inspect(str(base)), tmp_path).files
    there = {path.name: path.stat().st_size for path in made.iterdir()}
    assert {name: files[name] for name in there} == there


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("llama", {"num_key_value_heads": 1, "head_dim": 24, "intermediate_size": 96}),
        ("mamba2", {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16}),
        ("qwen2_moe", {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
                       "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}),
    ],
)  # fmt: skip
def test_with_sizes_that_no_kernel_takes(kind, sizes, tmp_path):
    base = saved(tmp_path / "base", kind, **sizes)
    assert_alike(logits(quantized("nf4", base, tmp_path / "q")), logits(base))


def test_a_weight_that_transformers_multiplies_by_itself_stays_as_it_is(tmp_path):
    base = saved(tmp_path / "base", "mamba", intermediate_size=128, state_size=16, time_step_rank=4)
    with pytest.raises(SpecError, match=r"multiplies by the weight of 'dt_proj' itself: give dt_proj"):
        quantized("int8", base, tmp_path / "a")
    made = quantized("int8", base, tmp_path / "b", llm_int8_skip_modules=["dt_proj"])
    assert_alike(logits(made), logits(base))
