"""Two steps of a training with default options, and the merge, of every family that people pick."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from backend.finetune import qlora
from backend.finetune.costs import adapter_parameters
from backend.finetune.options import FinetuneOptions
from backend.finetune.suited import suited
from backend.models.inspection import inspect
from backend.models.loading import changes, load_causal_lm
from backend.progress import Report, silent
from backend.recipes import parse_recipe
from backend.stages.estimate import estimate
from tests.support.adapters import merge_to
from tests.support.family_models import FAMILIES, REFUSED, make
from tests.support.training import rows

pytestmark = pytest.mark.real


CONTEXT = "Rows have 512 tokens at most: the model reads no more."
EAGER = "Attention is computed plainly (eager): transformers has no faster way for this kind of model."
EXPERTS = "The experts stay as they are: the adapter is for attention and the other shared layers."
BESIDE = EXPERTS.replace(":", " and so do the layers of the same names beside them:")
OUT = "out_proj stays as it is: PEFT does not train it in this kind of model."
LINES = {
    "Qwen3.5 MoE": [EXPERTS], "Gemma 4 MoE": [EXPERTS], "Qwen3 MoE": [EXPERTS], "gpt-oss": [EAGER, EXPERTS],
    "Qwen3-Next": [BESIDE], "Qwen3.8-Flash-Next": [EXPERTS], "Mistral Small 4": [EXPERTS], "GLM-4.7-Flash": [BESIDE],
    "GLM-4.6": [BESIDE], "GLM-5": [BESIDE], "DeepSeek V3": [BESIDE], "DeepSeek V4": [EAGER, EXPERTS],
    "Nemotron-3": [EXPERTS, OUT], "Granite 4 hybrid": [EXPERTS, OUT], "LFM2 MoE": [EXPERTS], "Falcon-H1": [OUT],
    "Llama 4": [EXPERTS], "MiniMax M2": [EXPERTS], "Kimi K2.5": [EXPERTS],
}  # fmt: skip
"""What is said beside CONTEXT, which is said of all that read no more."""

BESIDE_TEXT = {
    "visual", "vision_tower", "vision_model", "vision_embedder", "embed_vision", "multi_modal_projector",
    "mm_projector", "router", "experts", "indexer", "mtp",
}  # fmt: skip
"""Parts of the names of layers that get no adapter."""

IDS = torch.arange(2, 34)[None]


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def with_adapter(model, adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(model.float(), adapter).eval()


def tuned(folder, output, **given):
    """Do two steps with default options; give what was logged and the adapter's tensors."""
    output.mkdir(parents=True)
    events = []
    data, tokenizer = rows(folder, 8)
    options = FinetuneOptions(max_steps=2, **given)
    options.check(inspect(str(folder)))
    found = qlora.finetune(
        folder, data._replace(prompts=[], validation=[]), tokenizer, output, options, Report(events.append)
    )
    assert found.steps == 2
    assert 0 < found.train_loss < 10
    said = [event["text"] for event in events if event["event"] == "log"]
    return said, load_file(output / "adapter_model.safetensors")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_is_tuned_with_defaults_and_merged_as_peft_computes_it(name, tmp_path):
    folder, adapter = make(name, tmp_path / "model"), tmp_path / "job" / "adapter"
    facts, options = inspect(str(folder)), FinetuneOptions()
    said, tensors = tuned(folder, adapter)
    lines = [*[CONTEXT] * (facts.context_length == 512), *LINES.get(name, ())]
    assert list(suited(options, facts).lines) == lines == said[: len(lines)]
    assert sum(tensor.numel() for tensor in tensors.values()) == adapter_parameters(facts, options)
    assert all(BESIDE_TEXT.isdisjoint(key.split(".")) for key in tensors)
    with_peft = with_adapter(load_causal_lm(folder, silent()), adapter)
    assert changes(with_peft)
    merge_to(tmp_path / "merged", folder, adapter, merge_into="original", dtype="float32")
    assert torch.allclose(logits(load_causal_lm(tmp_path / "merged", silent())), logits(with_peft), atol=1e-4)
    trained_on = with_adapter(qlora._load(folder, facts, suited(options, facts).options, silent()), adapter)
    merge_to(tmp_path / "dequantized", folder, adapter, merge_into="nf4", dtype="float32")
    assert torch.allclose(logits(load_causal_lm(tmp_path / "dequantized", silent())), logits(trained_on), atol=1e-4)


MIXTURES = [name for name, family in FAMILIES.items() if any("expert" in key for key in family.text)]
NO_DROPOUT = "Nothing is dropped out: the adapter of experts cannot do that."


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_tuned_where_they_are_asked_for_and_merged_as_peft_computes_it(name, tmp_path):
    folder, adapter = make(name, tmp_path / "model"), tmp_path / "job" / "adapter"
    facts, options = inspect(str(folder)), FinetuneOptions(target_parameters="experts")
    said, tensors = tuned(folder, adapter, target_parameters="experts")
    lines = suited(options, facts).lines
    assert set(lines) <= set(said)
    assert NO_DROPOUT in lines
    experts = sum(tensor.numel() for key, tensor in tensors.items() if "experts" in key.split("."))
    assert any(line.startswith(f"The adapter of all experts has {experts:,} numbers") for line in lines)
    assert sum(tensor.numel() for tensor in tensors.values()) == adapter_parameters(facts, options)
    assert all(tensor.any() for key, tensor in tensors.items() if "experts" in key.split("."))  # B begins with zeros
    with_peft = with_adapter(load_causal_lm(folder, silent()), adapter)
    merge_to(tmp_path / "merged", folder, adapter, merge_into="original", dtype="float32")
    assert torch.allclose(logits(load_causal_lm(tmp_path / "merged", silent())), logits(with_peft), atol=1e-4)


def test_what_is_done_otherwise_stands_in_the_estimate(tmp_path):
    folder = make("Nemotron-3", tmp_path / "model")
    stages = [{"stage": "finetune", "dataset": "demo"}]
    recipe = parse_recipe({"base_model": str(folder), "stages": stages}, paths=True)
    assert estimate(recipe, inspect(str(folder)), tmp_path).warnings == (CONTEXT, EXPERTS, OUT)


@pytest.mark.parametrize("name", ["Qwen3.5 dense", "Gemma 4 MoE", "gpt-oss", "Nemotron-3", "GPT-2"])
def test_a_family_is_tuned_in_16_bit(name, tmp_path):
    folder = make(name, tmp_path / "model")
    tuned(folder, tmp_path / "job" / "adapter", quantization="none")
    assert changes(with_adapter(load_causal_lm(folder, silent()), tmp_path / "job" / "adapter"))


def test_an_adapter_has_the_names_that_engines_load_against_the_published_base(tmp_path):
    folder, adapter = make("Gemma 3", tmp_path / "model"), tmp_path / "job" / "adapter"
    _, tensors = tuned(folder, adapter, target_modules=("q_proj",))
    name = "base_model.model.model.language_model.layers.{}.self_attn.q_proj.lora_{}.weight"
    assert sorted(tensors) == sorted(name.format(layer, part) for layer in (0, 1) for part in "AB")
    assert json.loads((adapter / "adapter_config.json").read_text())["target_modules"]


def test_what_people_tune_works(capsys):
    total = sum(family.tune for family in FAMILIES.values())
    tuned = (family.tune for name, family in FAMILIES.items() if not {"tune", "merge"} & REFUSED.get(name, {}).keys())
    share = 100 * sum(tuned) / total
    with capsys.disabled():
        sys.stdout.write(f"\nOf what people tune, {share:.1f} % works with default options.\n")
    assert share >= 97
