"""FP8, MXFP4 and integers by rounding: bytes as compressed-tensors writes them, and how far each weight may move."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from backend.errors import SpecError
from backend.models.inspection import inspect
from backend.models.torch_weights import opened
from backend.processes.child import ROOT
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.matrices import Matrices
from backend.weights.checkpoint import Checkpoint
from backend.weights.floats import from_float32
from backend.weights.output import Output
from backend.weights.rounding import Rows, encode
from tests.support.family_models import make
from tests.support.saved_models import llama, save

FIXTURES = ROOT / "tests/support/compressed_tensors"
WRITTEN = {"fp8_dynamic": "e4m3", "fp8_block": "e4m3", "mxfp4": "e2m1", "w4a16": "int4", "w8a16": "int8",
           "w8a16_channel": "int8"}  # fmt: skip
CHOSEN = {
    "fp8": ("fp8", {}),
    "fp8 in blocks": ("fp8", {"strategy": "block"}),
    "mxfp4": ("mxfp4", {}),
    "w8a16": ("w8a16", {"group_size": 32}),
    "w8a16 of rows": ("w8a16", {"group_size": -1}),
    "w4a16": ("w4a16", {"group_size": 32}),
    "w4a16 of rows": ("w4a16", {"group_size": -1}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose sizes are no multiples of 128."""
    config = llama(hidden_size=160, intermediate_size=224, num_attention_heads=5, num_key_value_heads=5, head_dim=32)
    return save(config, tmp_path_factory.mktemp("scaled") / "model")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose layers are whole blocks wide, and some no whole number of them high."""
    config = llama(hidden_size=128, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    return save(config, tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture
def suited(case, model, wide):
    """The model of a case."""
    return wide if "blocks" in case else model


def quantized(source, output, method, **options):
    """Quantize, and return the tensors as they are stored."""
    output.mkdir(exist_ok=True)
    row = METHODS[method]
    with Checkpoint.of(source) as weights:
        row.quantize(weights, Output(output), row.Options(**options), silent())
    return {name: tensor for path in output.glob("*.safetensors") for name, tensor in load_file(path).items()}


def decoded(folder):
    """Return the weights that our reader makes of a folder."""
    with opened(folder) as (_, tensors):
        return {name: tensor[...] for name, tensor in tensors.items()}


def tensors_of(name):
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["made"])  # noqa: SIM118


@pytest.mark.parametrize("name", WRITTEN)
def test_with_the_scales_of_llm_compressor_codes_are_the_bytes_that_it_writes(name):
    held, made = tensors_of(name)
    source, _ = tensors_of(made["source"])
    args = made["quantization_config"]["config_groups"]["group_0"]["weights"]
    scales = {key: value for key, value in held.items() if key.endswith("weight_scale") and "/" not in key}
    assert scales
    for key, scale in scales.items():
        base = key.removesuffix("_scale")
        weight = source[base].float().numpy()
        width = args["group_size"] or (args["block_structure"] or [0, weight.shape[1]])[1]
        numbers = np.exp2(scale.numpy().astype(np.float32) - 127) if name == "mxfp4" else scale.float().numpy()
        each = np.repeat(numbers, args["block_structure"][0], 0)[: len(weight)] if args["block_structure"] else numbers
        rows = Rows(from_float32(weight, "F32").reshape(-1), "F32", weight.shape[1], width)
        codes, _ = encode(rows, WRITTEN[name], np.ascontiguousarray(each[..., None]))
        stored = base if base in held else f"{base}_packed"
        expected = held.get(f"float32/{stored}", held[stored])
        assert codes.tobytes() == expected.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("case", CHOSEN)
def test_the_package_decompresses_a_result_to_what_our_reader_makes_of_it(case, suited, tmp_path):
    from compressed_tensors.compressors import decompress_module
    from transformers import AutoModelForCausalLM

    method, options = CHOSEN[case]
    quantized(suited, tmp_path, method, **options)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    ours, found = decoded(tmp_path), 0
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Linear):
            if hasattr(module, "quantization_scheme"):
                decompress_module(module)
            found += f"{name}.weight" in ours
            assert torch.equal(ours.get(f"{name}.weight", module.weight), module.weight.detach())
    assert found == 15


def nearest(ratios, mantissa, least, largest):
    """Return how far a number may be from the nearest of a floating-point grid, float64."""
    sizes = np.abs(ratios)
    steps = np.exp2(np.maximum(np.floor(np.log2(np.maximum(sizes, 1e-300))), least) - mantissa)
    return np.maximum(steps / 2, sizes - largest)


BOUNDS = {
    "fp8": lambda ratios: nearest(ratios, 3, -6, 448),
    "mxfp4": lambda ratios: nearest(ratios, 1, 0, 6),
    "w8a16": lambda ratios: np.maximum(0.5, np.maximum(ratios - 127, -128 - ratios)),
    "w4a16": lambda ratios: np.maximum(0.5, np.maximum(ratios - 7, -8 - ratios)),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_no_weight_moves_further_than_half_a_step_of_its_format(case, suited, tmp_path):
    method, options = CHOSEN[case]
    stored = quantized(suited, tmp_path / "q", method, **options)
    source, found = load_file(suited / "model.safetensors"), decoded(tmp_path / "q")
    down, across = METHODS[method].Options(**options).block
    scales = {name.removesuffix("_scale"): value for name, value in stored.items() if name.endswith("_scale")}
    assert len(scales) == 14
    for name, scale in scales.items():
        weight, moved = source[name].double().numpy(), found[name].double().numpy()
        numbers = np.exp2(scale.double().numpy() - 127) if method == "mxfp4" else scale.double().numpy()
        rows, columns = weight.shape
        each = np.repeat(np.repeat(numbers, down, 0)[:rows], columns if across < 0 else across, 1)[:, :columns]
        bound = each * BOUNDS[method](weight / each) * (1 + 1e-6) + np.abs(moved) * 2.0**-8  # stored as bfloat16
        assert (np.abs(moved - weight) <= bound).all()
        assert (np.abs(moved - weight) > 0).any()


def test_of_the_powers_of_two_the_one_that_loses_least_is_stored(model, tmp_path):
    stored, source = quantized(model, tmp_path, "mxfp4"), load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    groups = source[name].double().numpy().reshape(-1, 32)
    exponents = stored[f"{name}_scale"].numpy().reshape(-1).astype(int) - 127
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def lost(powers):
        scale = np.exp2(powers)[:, None]
        near = np.abs(np.abs(groups / scale)[..., None] - grid).min(-1) * scale
        return (near**2).sum(1)

    of_ocp = np.floor(np.log2(np.abs(groups).max(1))) - 2
    least = np.minimum(lost(of_ocp), lost(of_ocp + 1))
    assert (lost(exponents) <= least * (1 + 1e-5)).all()
    assert 0 < (exponents != of_ocp).mean() < 1


@pytest.mark.parametrize("size", [32, -1])
def test_a_scale_that_is_searched_loses_less_than_the_one_of_the_largest_weight(size, model, tmp_path):
    quantized(model, tmp_path, "w4a16", group_size=size)
    source, found = load_file(model / "model.safetensors"), decoded(tmp_path)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        weight = source[name].double()
        groups = weight.reshape(-1, size if size > 0 else weight.shape[1])
        scale = groups.abs().amax(1, keepdim=True) / 7.5
        plain = ((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum()
        assert (found[name].double() - weight).square().sum() < 0.95 * plain


@pytest.mark.parametrize("case", [*CHOSEN, "mxfp4, in shards"])
def test_what_is_planned_is_what_is_written(case, suited, tmp_path):
    method, options = CHOSEN[case.partition(",")[0]]
    given = options | ({"max_shard_size": 100_000} if "shards" in case else {})
    quantized(suited, tmp_path, method, **given)
    facts = inspect(str(suited))
    planned = METHODS[method].Options(**given).plan(facts.tensors, facts.config)
    assert planned.files == {p.name: p.stat().st_size for p in tmp_path.iterdir() if p.name != "config.json"}
    assert (len(planned.parts) > 1) == ("shards" in case)


@pytest.mark.parametrize("family", ["gpt-oss", "Llama 4", "Granite 4 hybrid", "Qwen3 MoE"])
def test_experts_are_written_one_by_one_wherever_they_lie(family, tmp_path):
    source = make(family, tmp_path / "source")
    stored = quantized(source, tmp_path / "q", "fp8")
    facts, tensors = inspect(str(source)), load_file(source / "model.safetensors")
    matrices = Matrices(facts.config)
    count = 0
    for tensor in facts.tensors:
        for matrix, part in matrices.of(tensor).items():
            if ".experts." not in matrix.name:
                continue
            held = tensors[tensor.name]
            weight = (held if part is None else matrices.view(held, part, matrix.shape[0])).float()
            scale = stored[f"{matrix.name}_scale"]
            ends = weight.abs().amax(1, keepdim=True) / scale.float()
            assert ((ends > 256) & (ends < 450)).all()  # within an octave of the end of the grid, 448
            codes = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
            assert torch.equal(stored[matrix.name].view(torch.uint8), codes.view(torch.uint8))
            count += 1
    assert count >= 8


@pytest.mark.parametrize(("method", "group"), product(["w4a16", "w8a16"], [64, 128]))
def test_a_group_size_that_does_not_divide_the_layers_is_refused_with_those_that_do(method, group, model):
    with pytest.raises(SpecError, match=f"{group} does not divide the 224 inputs of .*: choose 32 or -1"):
        METHODS[method].Options(group_size=group).check(inspect(str(model)))


def test_blocks_that_do_not_divide_the_layers_are_refused(model, wide):
    METHODS["fp8"].Options(strategy="block").check(inspect(str(wide)))
    with pytest.raises(SpecError, match=r"strategy: block does not divide the 224 inputs of .*: choose channel"):
        METHODS["fp8"].Options(strategy="block").check(inspect(str(model)))


@pytest.mark.parametrize("method", ["fp8", "mxfp4", "w8a16", "w4a16"])
def test_a_model_whose_layers_readers_do_not_find_is_refused(method, tmp_path):
    from transformers import GPT2Config

    source = save(GPT2Config(vocab_size=100, n_positions=32, n_embd=64, n_layer=1, n_head=2), tmp_path / "gpt2")
    with pytest.raises(SpecError, match="choose nf4 or gptq"):
        METHODS[method].Options().check(inspect(str(source)))


def test_layers_that_groups_do_not_divide_stay_and_are_named(tmp_path):
    source = save(llama(hidden_size=64, intermediate_size=80, num_attention_heads=2), tmp_path / "source")
    facts, options = inspect(str(source)), METHODS["mxfp4"].Options()
    options.check(facts)
    assert {t.name.split(".")[-2] for t in options.plan(facts.tensors, facts.config).odd} == {"down_proj"}
    stored = quantized(source, tmp_path / "q", "mxfp4")
    assert "model.layers.0.mlp.down_proj.weight" in stored
    ignored = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["ignore"]
    assert "re:.*\\blayers\\.0\\.mlp\\.down_proj\\b.*" in ignored
