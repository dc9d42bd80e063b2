"""Quantized folders, compared with bitsandbytes itself and with float64 arithmetic."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import SpecError
from backend.models.facts import ModelFacts, Tensor
from backend.progress import silent
from backend.quantize import METHODS

LAYER = "model.layers.0.mlp.down_proj.weight"


def quantized(method, source, output, **options):
    output.mkdir()
    module = METHODS[method]
    report = silent()
    module.quantize(source, output, module.Options(**options), report)
    return load_file(output / "model.safetensors"), json.loads((output / "config.json").read_text()), report


def facts(source):
    tensors = tuple(
        Tensor(name=name, dtype="BF16", shape=tuple(t.shape))
        for name, t in load_file(source / "model.safetensors").items()
    )
    return ModelFacts(
        model="tiny", architecture="LlamaForCausalLM", model_type="llama", parameters=1, size=1, download=1,
        dtype="bfloat16", layers=2, hidden_size=64, vocab_size=256, tied=False, chat_template=True, tensors=tensors,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_four_bit_weights_are_bitsandbytes_bytes(tiny_model, tmp_path, method, double):
    import bitsandbytes.functional as F

    weights, config, _ = quantized(method, tiny_model, tmp_path / "q", bnb_4bit_use_double_quant=double)
    source = load_file(tiny_model / "model.safetensors")[LAYER]
    packed, state = F.quantize_4bit(source, quant_type=method, compress_statistics=double)
    assert torch.equal(weights[LAYER], packed)
    assert torch.equal(weights[LAYER + ".absmax"], state.absmax)
    assert torch.equal(weights[LAYER + ".quant_map"], state.code)
    assert (LAYER + ".nested_absmax" in weights) == double
    if double:
        assert torch.equal(weights[LAYER + ".nested_absmax"], state.state2.absmax)
    assert config["quantization_config"]["bnb_4bit_quant_type"] == method
    assert config["quantization_config"]["bnb_4bit_use_double_quant"] is double


def test_eight_bit_rows_are_within_half_a_step_of_the_source(tiny_model, tmp_path):
    weights, config, _ = quantized("int8", tiny_model, tmp_path / "q")
    source = load_file(tiny_model / "model.safetensors")[LAYER].double()
    step = source.abs().amax(1, keepdim=True) / 127
    assert weights[LAYER].dtype == torch.int8
    assert ((weights[LAYER].double() * step - source).abs() <= step * 0.51).all()
    assert torch.allclose(weights[LAYER.replace("weight", "SCB")].double(), source.abs().amax(1), rtol=1e-3)
    assert config["quantization_config"]["load_in_8bit"] is True


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_output_head_and_embeddings_stay_as_they_are(tiny_model, tmp_path, method):
    weights, _, _ = quantized(method, tiny_model, tmp_path / "q")
    source = load_file(tiny_model / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(weights[name], source[name])


def test_modules_to_skip_stay_in_16_bit(tiny_model, tmp_path):
    weights, _, _ = quantized("nf4", tiny_model, tmp_path / "q", llm_int8_skip_modules=["down_proj", "lm_head"])
    assert weights[LAYER].dtype == torch.bfloat16
    assert weights[LAYER.replace("down_proj", "up_proj")].dtype == torch.uint8


def test_a_module_that_is_not_there_is_refused_before_the_start(tiny_model):
    options = METHODS["nf4"].Options(llm_int8_skip_modules=["down_prj"])
    with pytest.raises(SpecError, match=r"'down_prj'.*down_proj"):
        options.check(facts(tiny_model))


def test_offload_is_a_flag_for_whoever_loads_and_changes_no_weight(tiny_model, tmp_path):
    plain, _, _ = quantized("int8", tiny_model, tmp_path / "a")
    flagged, config, _ = quantized("int8", tiny_model, tmp_path / "b", llm_int8_enable_fp32_cpu_offload=True)
    assert config["quantization_config"]["llm_int8_enable_fp32_cpu_offload"] is True
    assert all(torch.equal(plain[name], flagged[name]) for name in plain)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cast_gives_the_same_numbers_in_another_type(tiny_model, tmp_path, dtype):
    weights, config, report = quantized("cast", tiny_model, tmp_path / "q", dtype=dtype)
    source = load_file(tiny_model / "model.safetensors")[LAYER]
    assert torch.equal(weights[LAYER], source.to(getattr(torch, dtype)))
    assert config["dtype"] == dtype
    assert not report.warnings


def test_cast_warns_when_float16_overflows(tiny_model, tmp_path):
    source = tmp_path / "large"
    shutil.copytree(tiny_model, source)
    weights = load_file(source / "model.safetensors")
    weights[LAYER][3, 5] = 1e6
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    _, _, report = quantized("cast", source, tmp_path / "q", dtype="float16")
    assert len(report.warnings) == 1
    assert LAYER in report.warnings[0]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("nf4", {}),
        ("nf4", {"bnb_4bit_use_double_quant": False}),
        ("fp4", {}),
        ("int8", {}),
        ("cast", {"dtype": "float32"}),
    ],
)
def test_the_estimated_bytes_of_tensors_are_those_written(tiny_model, tmp_path, method, options):
    weights, _, _ = quantized(method, tiny_model, tmp_path / "q", **options)
    written = sum(t.numel() * t.element_size() for t in weights.values())
    chosen = METHODS[method].Options(**options)
    expected = sum(chosen.tensor_bytes(tensor) for tensor in facts(tiny_model).tensors)
    assert expected == pytest.approx(written, rel=0.01)
