"""What a later stage would refuse is refused before the work; what could not be done before is done."""

import json

import pytest
import torch
from safetensors.torch import load_file

from backend.errors import SpecError
from backend.options import parse
from backend.publish.options import PublishOptions
from backend.recipes import parse_recipe
from backend.serve.engines.transformers_server import _limited
from backend.stages.prepare import prepare
from backend.weights.anatomy import is_linear
from backend.weights.checkpoint import Checkpoint
from backend.weights.dequantized import Dequantized

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def saved(folder, kind, **sizes):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def recipe(model, tmp_path, *stages, **tuning):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": str(i)}) + "\n" for i in range(8)))
    tuned = {"stage": "finetune", "dataset": str(rows), "max_length": 32, **tuning}
    return parse_recipe({"base_model": str(model), "stages": [tuned, *stages]}, paths=True)


MERGE = {"stage": "merge"}


@pytest.mark.parametrize(("kind", "words"), [
    ("falcon", "quantization: transformers does not load a model of the type 'falcon' so: choose none"),
    ("zamba2", "a model of the type 'zamba2' is merged into its original weights only"),
])  # fmt: skip
def test_a_merge_that_cannot_be_done_is_refused_before_its_training(kind, words, tmp_path):
    states = {"mamba_d_state": 16, "mamba_headdim": 16, "n_mamba_heads": 8, "mamba_expand": 2, "num_mem_blocks": 1}
    layers = {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "num_key_value_heads": 4}
    sizes = {"zamba2": {"intermediate_size": 64, **states, **layers}}.get(kind, {})
    model = saved(tmp_path / kind, kind, **sizes)
    with pytest.raises(SpecError, match=words):
        prepare(recipe(model, tmp_path, MERGE, quantization="nf4"), tmp_path / "data", None)
    prepare(recipe(model, tmp_path, MERGE, quantization="none"), tmp_path / "data", None)
    if kind != "falcon":
        prepare(recipe(model, tmp_path, MERGE | {"merge_into": "original"}), tmp_path / "data", None)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"method": "gptq", "group_size": 128}, "128 does not divide the 64 inputs"),
        ({"method": "awq", "group_size": 128}, "128 does not divide the 64 inputs"),
        ({"method": "nf4", "llm_int8_skip_modules": ["nowhere"]}, "'nowhere' is no linear layer of the model"),
    ],
)
def test_a_quantization_that_cannot_be_done_is_refused_before_the_training(stage, words, tmp_path):
    model = saved(tmp_path / "llama", "llama", intermediate_size=128)
    with pytest.raises(SpecError, match=words):
        prepare(recipe(model, tmp_path, MERGE, {"stage": "quantize", **stage}), tmp_path / "data", None)


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt"])
@pytest.mark.parametrize("double", [True, False])
def test_weights_that_lie_turned_are_dequantized_as_bitsandbytes_sees_them(kind, double, tmp_path):
    import bitsandbytes.functional as F

    model = saved(tmp_path / "turned", kind)
    with Checkpoint.of(model) as stored:
        weights, seen = Dequantized(stored, "nf4", double, "BF16"), 0
        for name, tensor in load_file(model / "model.safetensors").items():
            there = next(t for t in weights.tensors if t.name == name)
            if is_linear(there):
                packed, state = F.quantize_4bit(tensor.T.contiguous(), quant_type="nf4", compress_statistics=double)
                tensor, seen = F.dequantize_4bit(packed, state).T, seen + 1
            middle = there.elements // 3
            parts = [weights.read(there, 0, middle), weights.read(there, middle, there.elements)]
            found = torch.cat([torch.from_numpy(part.copy()) for part in parts]).view(torch.bfloat16)
            assert torch.equal(found.reshape(tensor.shape), tensor), name
            weights.release(there)
        assert seen == 8


@pytest.mark.parametrize(
    ("asked", "wanted", "given"), [(10, 8, 8), (10, 512, 90), (99, 512, 1), (100, 8, None), (400, 8, None)]
)
def test_an_answer_ends_where_the_models_positions_do(asked, wanted, given):
    from types import SimpleNamespace

    from fastapi import HTTPException

    config = SimpleNamespace(max_new_tokens=wanted)
    answer = _limited(lambda *known, **more: known[-1].max_new_tokens, 100)
    request = (None, "id", "model", "tokenizer", "name", {"input_ids": torch.zeros(1, asked)}, config)
    if given is None:
        with pytest.raises(HTTPException, match=f"{asked} tokens, and the model reads 100"):
            answer(*request)
    else:
        assert answer(*request) == given


@pytest.mark.parametrize(("given", "field"), [({}, "repo_id"), ({"repo_id": "me/x", "to_folder": "out"}, "to_folder")])
def test_a_fault_of_two_options_names_one_of_them(given, field):
    with pytest.raises(SpecError) as e:
        parse(PublishOptions, given)
    assert list(e.value.faults) == [field]
