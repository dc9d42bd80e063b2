"""Quantized folders, compared with bitsandbytes itself and with float64 arithmetic."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import SpecError
from backend.models.facts import ModelFacts
from backend.processes.child import ROOT
from backend.progress import silent
from backend.quantize import METHODS
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from backend.weights.tensor import Tensor
from tests.support.saved_models import CASES, llama, save

LAYER = "model.layers.0.mlp.down_proj.weight"


def quantized(method, source, output, **options):
    output.mkdir()
    module = METHODS[method]
    report = silent()
    with Checkpoint.of(source) as weights:
        module.quantize(weights, Output(output), module.Options(**options), report)
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


OPTIONS = {
    "nf4": ("nf4", {}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    "fp4": ("fp4", {}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}),
    "plain nf4": (
        "nf4",
        {"bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "float16"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float16"},
    ),
    "int8": ("int8", {"llm_int8_threshold": 4.0}, {"load_in_8bit": True, "llm_int8_threshold": 4.0}),
}


@pytest.mark.parametrize("chosen", OPTIONS)
@pytest.mark.parametrize("case", [case[0] for case in CASES])
def test_every_tensor_is_the_one_that_transformers_and_bitsandbytes_write(case, chosen, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _, config, saving = next(c for c in CASES if c[0] == case)
    method, ours, theirs = OPTIONS[chosen]
    source = save(config, tmp_path / "source", **saving)
    peer_config = BitsAndBytesConfig(
        **{"bnb_4bit_compute_dtype": "bfloat16"} | theirs if "8bit" not in str(theirs) else theirs
    )
    peer = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=peer_config, dtype="auto", device_map={"": "cpu"}
    )
    peer.save_pretrained(tmp_path / "peer")
    found, found_config, _ = quantized(method, source, tmp_path / "ours", **ours)
    expected = load_file(tmp_path / "peer" / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert (
            torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))
            if tensor.dim()
            else found[name] == tensor
        ), name
    expected_config = json.loads((tmp_path / "peer" / "config.json").read_text())
    assert found_config["quantization_config"] == expected_config["quantization_config"]


def test_weights_are_cast_to_the_type_that_the_config_names_as_transformers_does(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source = save(llama(), tmp_path / "source", torch.float32)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    peer = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype="auto", device_map={"": "cpu"}
    )
    peer.save_pretrained(tmp_path / "peer")
    expected = load_file(tmp_path / "peer" / "model.safetensors")
    found, _, _ = quantized("fp4", source, tmp_path / "ours", bnb_4bit_use_double_quant=False)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", ["nf4", "int8", "cast"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [LAYER, "model.embed_tokens.weight"])
def test_weights_that_are_not_finite_are_refused_with_their_tensor(tiny_model, tmp_path, method, value, name):
    source = tmp_path / "broken"
    shutil.copytree(tiny_model, source)
    weights = load_file(source / "model.safetensors")
    weights[name][3, 5] = value
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(SpecError, match=name):
        quantized(method, source, tmp_path / "q")


def test_quantizing_imports_neither_torch_nor_the_compiler(tiny_model, tmp_path):
    quantized("nf4", tiny_model, tmp_path / "first")  # its loops are compiled from then on
    (tmp_path / "q").mkdir()
    code = (
        "import sys; from pathlib import Path;"
        "from backend.quantize import METHODS; from backend.progress import silent;"
        "from backend.weights.checkpoint import Checkpoint; from backend.weights.output import Output;"
        "weights, output = Checkpoint.of(Path(sys.argv[1])), Output(Path(sys.argv[2]));"
        "METHODS['nf4'].quantize(weights, output, METHODS['nf4'].Options(), silent());"
        "print(sorted({'torch', 'transformers', 'bitsandbytes', 'numba'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, tiny_model, tmp_path / "q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


@pytest.mark.parametrize("case", [case[0] for case in CASES])
def test_cast_changes_the_type_of_every_tensor_and_nothing_else(case, tmp_path):
    _, config, saving = next(c for c in CASES if c[0] == case)
    source = save(config, tmp_path / "source", **saving)
    expected = {name: t for path in source.glob("*.safetensors") for name, t in load_file(path).items()}
    found, _, _ = quantized("cast", source, tmp_path / "ours", dtype="float32")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name].float()) for name in expected)


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
def test_planned_files_are_those_written_to_the_byte(tiny_model, tmp_path, method, options):
    quantized(method, tiny_model, tmp_path / "q", **options)
    with Checkpoint.of(tiny_model) as weights:
        planned = METHODS[method].Options(**options).plan(weights.tensors, weights.config).files
    written = {path.name: path.stat().st_size for path in (tmp_path / "q").glob("model*")}
    assert planned == written
