"""A trained output head behind a config that says it is the input embeddings stays what transformers loads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.merge.merging import merge, merged
from backend.merge.options import MergeOptions
from backend.models.config import context_length, is_tied
from backend.models.families import is_taken
from backend.models.inspection import inspect
from backend.models.native import picture_types, text_types
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.windows import Windows
from backend.quantize.packed import load_unpacked
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.support.adapters import save_adapter

SIZES = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 128, "tie_word_embeddings": True},
    "gemma": {"num_key_value_heads": 2, "intermediate_size": 128, "head_dim": 16},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt2": {"n_inner": 128},
}
TOKENS = torch.arange(2, 22)[None]


def with_own_head(folder, kind, said=None):
    """Save a model whose config, or whose type where that says nothing, ties a head that was trained all the same."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes | SIZES[kind], max_position_embeddings=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(96, 64) * 0.3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if said is not None:
        path = folder / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != said}))
    return folder


def logits(folder):
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("method", ["cast", "nf4", "int8"])
def test_the_head_is_kept_by_every_method_and_counted_by_the_estimate(kind, method, tmp_path):
    base = with_own_head(tmp_path / "base", kind, said=None if kind == "llama" else "tie_word_embeddings")
    made = tmp_path / "made"
    made.mkdir()
    options = METHODS[method].Options(**({"dtype": "float32"} if method == "cast" else {}))
    with Checkpoint.of(base) as weights:
        METHODS[method].quantize(weights, Output(made), options, silent())
    head = load_file(base / "model.safetensors")["lm_head.weight"]
    assert torch.equal(load_file(made / "model.safetensors")["lm_head.weight"], head)
    assert json.loads((made / "config.json").read_text())["tie_word_embeddings"] is False
    if method == "cast":
        assert torch.equal(logits(made), logits(base))
    recipe = parse_recipe({"base_model": str(base), "stages": [options.model_dump()]}, paths=True)
    files = estimate(recipe, inspect(str(base)), tmp_path).files
    there = {path.name: path.stat().st_size for path in made.iterdir()}
    assert {name: files[name] for name in there} == there


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_the_head_is_kept_in_blocks_of_integers_and_read_back(kind, tmp_path):
    base, made = with_own_head(tmp_path / "base", kind), tmp_path / "made"
    made.mkdir()
    with Checkpoint.of(base) as weights:
        options = METHODS["gptq"].Options(bits=8, group_size=32)
        METHODS["gptq"].quantize(weights, Output(made), options, Windows("none", TOKENS.numpy()), silent())
    with torch.inference_mode():
        found = load_unpacked(made, silent())(TOKENS).logits
    assert (found - logits(base)).abs().max() < 0.05 * logits(base).abs().max()


def test_an_adapter_changes_the_head_that_is_there_and_not_the_embeddings(tmp_path):
    base = with_own_head(tmp_path / "base", "llama")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    made = tmp_path / "made"
    made.mkdir()
    options = MergeOptions(dtype="float32")
    with Checkpoint.of(base) as weights, merged(weights, [adapter], options, silent()) as result:
        merge(result, Output(made), options, silent())
    before, after = load_file(base / "model.safetensors"), load_file(made / "model.safetensors")
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(TOKENS).logits
    assert (logits(made) - tuned).abs().max() < 1e-4


def test_the_types_that_tie_by_default_are_those_of_transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kinds = sorted(kind for kind in text_types() | picture_types() if is_taken(kind))
    theirs = {kind: bool(getattr(CONFIG_MAPPING[kind](), "tie_word_embeddings", False)) for kind in kinds}
    for names in ([], ["XForCausalLM"], ["XForConditionalGeneration"]):
        assert {kind: is_tied({"model_type": kind, "architectures": names}) for kind in kinds} == theirs
    assert is_tied({"model_type": "opt"})
    assert not is_tied({"model_type": "llama"})
    assert is_tied({"model_type": "qwen3_5", "text_config": {"tie_word_embeddings": True}})


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"n_positions": 1024}, 1024),
        ({"max_seq_len": 2048}, 2048),
        ({"seq_length": 512, "max_position_embeddings": 0}, 512),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": "many"}}, 4096),
        ({"hidden_size": 64}, None),
    ],
)
def test_the_context_is_found_by_any_of_its_names(config, most):
    assert context_length(config) == most
