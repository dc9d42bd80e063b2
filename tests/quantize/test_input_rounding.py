"""Models that are measured round their inputs as the package compressed-tensors does, and as vLLM's kernels do."""

import json

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStatus, fake_quantize
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from safetensors.torch import load_file, save_file

from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.kv_cache import SCHEME
from backend.quantize.compressed_tensors import inputs_of
from backend.quantize.engine_rounding import round_as_engines
from backend.quantize.input_rounding import rounding, to_floats, to_integers
from backend.quantize.packed import load
from tests.quantize.test_calibrated import model_of, quantized
from tests.support.encoded_models import encoded_model
from tests.support.family_models import make

__all__ = ["model_of"]

FLOATS, INTEGERS = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "int"}
BLOCKS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}
BLOCKS["scale_dtype"] = "torch.float8_e4m3fn"
TOKEN, GROUPS = {"strategy": "token", "dynamic": True}, {"strategy": "group", "group_size": 128, "dynamic": True}
ROUNDED, EXACT = "rounded as engines do", "in 16 bit, where engines round them and lose more"


def inputs():
    """Return inputs of some tokens: large and small ones, one token of zeros, and a block of next to nothing."""
    torch.manual_seed(0)
    x = torch.randn(512, 384) * torch.logspace(-3, 1, 384) * torch.logspace(-2, 1, 512)[:, None]
    x[7] = 0
    x[:, :16] *= 1e-7
    return x


def by_the_package(x, said, **stored):
    layer = torch.nn.Module()
    layer.quantization_status = QuantizationStatus.COMPRESSED
    for name, number in stored.items():
        setattr(layer, name, torch.tensor([number]))
    return forward_quantize(layer, x[None], "input", QuantizationArgs(**said))[0]


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        (FLOATS | TOKEN, {}),
        (FLOATS | GROUPS, {}),
        (FLOATS | {"strategy": "tensor"}, {"input_scale": 0.013}),
        (INTEGERS | {"strategy": "tensor"}, {"input_scale": 0.037}),
        (BLOCKS, {"input_global_scale": 448 * 6 / 40}),
        (BLOCKS, {"input_global_scale": 448 * 6 / 400}),
    ],
    ids=str,
)
def test_inputs_are_rounded_bit_for_bit_as_the_package_does(said, stored):
    x = inputs()
    found = rounding(said, *stored.values())(x.clone())
    assert torch.equal(found, by_the_package(x, said, **stored))
    assert not torch.equal(found, x)


def test_integers_have_the_scales_of_kernels_which_are_larger_than_the_packages():
    """vLLM divides the largest input of a token by 127, the package by 127.5; with one scale both round alike."""
    x = inputs()
    scale = (x.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    args = QuantizationArgs(**INTEGERS, **TOKEN)
    assert torch.equal(to_integers(x.clone()), fake_quantize(x, scale, torch.zeros_like(scale), args))
    assert torch.equal(rounding(INTEGERS | TOKEN)(x.clone()), to_integers(x.clone()))


def test_without_a_stored_scale_the_largest_input_decides():
    x = inputs()
    assert torch.equal(to_floats(x), by_the_package(x, BLOCKS, input_global_scale=(2688 / x.abs().max()).item()))


@pytest.mark.parametrize(
    "said",
    [
        FLOATS | {"strategy": "tensor"},
        BLOCKS,
        FLOATS | {"strategy": "group", "group_size": 32, "dynamic": True, "scale_dtype": "torch.uint8"},
        INTEGERS | TOKEN | {"symmetric": False},
        FLOATS | {"strategy": "tensor", "dynamic": True},
        {"num_bits": [8], "type": {}, "strategy": 3},
    ],
    ids=str,
)
def test_what_is_not_known_or_lacks_its_scale_is_not_rounded(said):
    assert rounding(said) is None


def test_of_several_groups_the_one_that_names_a_layer_says_how():
    groups = [{"targets": [target], "weights": {"num_bits": 8}, "input_activations": {"strategy": target}}
              for target in ("Linear", "re:.*attn.*", "layers.1.attn.k")]  # fmt: skip
    bare = [{"targets": ["re:.*attn.*"], "input_activations": TOKEN}, {"targets": ["re:("], "weights": {"num_bits": 8}}]
    settings = {"config_groups": dict(enumerate([*bare, *groups]))}
    found = {layer: inputs_of(settings, layer) for layer in ("layers.0.mlp.up", "layers.0.attn.k", "layers.1.attn.k")}
    assert [said and said["strategy"] for said in found.values()] == [None, "re:.*attn.*", "layers.1.attn.k"]
    assert inputs_of({"config_groups": {"group_0": groups[0]}}, "any") == {"strategy": "Linear"}


@pytest.mark.parametrize("method", ["fp8", "nvfp4"])
def test_of_a_model_that_is_measured_all_quantized_layers_round_as_the_package_does(model_of, tmp_path, method):
    source, made = model_of("llama", torch.float32), tmp_path / "made"
    if METHODS[method].Options().streams:
        made_by(method, source, tmp_path)
    else:
        quantized(method, source, made, group_size=16)
    exact, ours, theirs = (load(made, silent()) for _ in range(3))
    assert round_as_engines(ours, made) == f"inputs of layers {ROUNDED}"
    said = json.loads((made / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    stored = load_file(made / "model.safetensors")
    for name, layer in theirs.named_modules():
        if name.endswith("_proj"):
            scale = {"input_global_scale": stored[f"{name}.input_global_scale"].item()} if method == "nvfp4" else {}
            layer.register_forward_pre_hook(
                lambda module, args, scale=scale: by_the_package(args[0][0], said["input_activations"], **scale)[None]
            )
    with torch.inference_mode():
        plain, found, wanted = (each(input_ids=torch.arange(2, 50)[None]).logits for each in (exact, ours, theirs))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, plain)


def made_by(method, source, folder, **options):
    from backend.weights.checkpoint import Checkpoint
    from backend.weights.output import Output

    made = folder / "made"
    made.mkdir()
    with Checkpoint.of(source) as weights:
        METHODS[method].quantize(weights, Output(made), METHODS[method].Options(**options), silent())
    return made


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("fp8 in blocks", f"inputs of layers {ROUNDED}"),
        ("fp8 of tensors", f"inputs of layers {ROUNDED}"),
        ("nvfp4 of rows", "the cache " + ROUNDED),
        ("int4 in groups", ""),
        ("mxfp4", ""),
    ],
)
def test_what_others_ship_is_rounded_as_they_say(encoding, said, tmp_path):
    folder = encoded_model(tmp_path, encoding).encoded
    assert round_as_engines(load(folder, silent()), folder) == said


def with_inputs(folder, said):
    """Say of a folder's layers how their inputs are rounded."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = said
    (folder / "config.json").write_text(json.dumps(config))


def test_scales_that_were_found_before_are_read(tmp_path):
    folder = encoded_model(tmp_path, "fp8 of rows").encoded
    with_inputs(folder, FLOATS | {"strategy": "tensor"})
    assert round_as_engines(load(folder, silent()), folder) == f"inputs of layers {EXACT}"
    tensors = load_file(folder / "model.safetensors")
    layers = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    save_file(tensors | {f"{layer}.input_scale": torch.tensor([0.05]) for layer in layers[1:]},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    model = load(folder, silent())
    assert round_as_engines(model, folder) == f"inputs of layers {ROUNDED}, other inputs of layers {EXACT}"
    heard = {}
    for layer in layers[:2]:
        model.get_submodule(layer).register_forward_pre_hook(lambda module, args, n=layer: heard.update({n: args[0]}))
    with torch.inference_mode():
        model(input_ids=torch.arange(2, 20)[None])
    exact, found = (heard[layer].float() for layer in layers[:2])
    assert not torch.equal((exact / 0.05).to(torch.float8_e4m3fn).float(), exact / 0.05)
    assert torch.equal(found, ((found / 0.05).to(torch.float8_e4m3fn).float() * 0.05).bfloat16().float())


def test_it_is_said_where_inputs_of_experts_are_not_rounded(tmp_path):
    made = made_by("fp8", make("Qwen3 MoE", tmp_path / "source"), tmp_path)
    said = f"inputs of layers {ROUNDED}, inputs of experts {EXACT}"
    assert round_as_engines(load(made, silent()), made) == said


@pytest.mark.parametrize("name", ["llama", "phi3", "opt"])
def test_keys_and_values_lie_in_the_cache_as_engines_keep_them(model_of, tmp_path, name):
    source = model_of(name, torch.float32)
    quantized("gptq", source, tmp_path / "q", layout="compressed-tensors", kv_cache_dtype="fp8")
    exact, model = load(tmp_path / "q", silent()), load(tmp_path / "q", silent())
    assert round_as_engines(model, tmp_path / "q") == f"the cache {ROUNDED}"
    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        plain, alone = (each(input_ids=ids, use_cache=False).logits for each in (exact, model))
        put = model(input_ids=ids, use_cache=True)
    assert torch.equal(alone, put.logits)
    assert not torch.equal(alone, plain)
    scales = load_file(tmp_path / "q" / "model.safetensors")
    for key, scale in ((key, t.float()) for key, t in scales.items() if key.endswith(("k_scale", "v_scale"))):
        layer = put.past_key_values.layers[int(key.split(".layers.")[1].split(".")[0])]
        kept = layer.keys if key.endswith("k_scale") else layer.values
        assert torch.equal(kept, by_the_package(kept[0], SCHEME, input_scale=scale.item())[None])
    assert len(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0]) > ids.shape[1]


def test_models_without_such_layers_are_left_as_they_are(tiny_model):
    assert round_as_engines(load_causal_lm(tiny_model, silent()), tiny_model) == ""
