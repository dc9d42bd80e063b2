"""W8A8 and NVFP4: what is written is what llm-compressor writes, and what compressed-tensors reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors import safe_open
from safetensors.torch import load_file

from backend.errors import SpecError
from backend.models.loading import load_causal_lm
from backend.options import parse
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.grids import Scales, round_to
from backend.quantize.layouts import int_quantized, nvfp4
from backend.quantize.layouts.layout import Grid, Scheme
from backend.weights.checkpoint import Checkpoint
from tests.quantize.test_calibrated import model_of, quantized, windows

LAYOUTS = {"w8a8": int_quantized, "nvfp4": nvfp4}
SCHEMES = {"w8a8": Scheme(8, dtype="BF16"), "nvfp4": Scheme(4, 16, dtype="BF16")}
THEIRS = Path(__file__).parents[1] / "support" / "compressed_tensors"

__all__ = ["model_of"]


def stored(name):
    """Return what llm-compressor wrote, and what it was made from."""
    with safe_open(THEIRS / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def rounded(weight, scales, zero, numbers):
    """Round weights to grids whose scales are known."""
    size = weight.shape[1] // scales.shape[1]
    grid = Scales(scales.repeat_interleave(size, 1), torch.tensor(float(zero)))
    q = round_to(weight.float(), grid, numbers).to(torch.uint8).numpy()
    zeros = np.full(scales.shape, zero, np.uint8)
    return Grid(q, scales.numpy(), zeros, (np.arange(weight.shape[1]) // size).astype(np.int32))


def raw(values):
    """Return the bytes of an array or a tensor; a zero of ours has no sign."""
    if isinstance(values, torch.Tensor):
        values = values.contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1)


def unsigned_zeros(codes):
    """Return pairs of 4-bit floats with 0 in the place of -0, which no grid of ours holds."""
    low, high = codes & 15, codes >> 4
    return np.where(low == 8, 0, low) | np.where(high == 8, 0, high) << 4


@pytest.mark.parametrize("method", LAYOUTS)
def test_with_the_same_scales_the_bytes_are_those_of_llm_compressor(method):
    theirs, source = stored(method), stored("rows")
    numbers, layout, compared = METHODS[method].Options().numbers, LAYOUTS[method], 0
    for key in [key for key in theirs if key.endswith(".weight_scale") and key.startswith("model")]:
        base = key.removesuffix("weight_scale")
        scales, over = theirs[key].float(), theirs.get(f"{base}weight_global_scale", torch.ones(1))
        each = 2 if method == "nvfp4" else 1
        grid = rounded(source[f"{base}weight"], scales / over / each, layout.LOWEST, numbers)
        if method == "nvfp4":
            grid = grid._replace(unit=over.item(), reach=2688 / theirs[f"{base}input_global_scale"].item())
        packed = layout.pack(grid, SCHEMES[method])
        assert {name for name in theirs if name.startswith(base)} == {base + name for name in packed}
        for name, values in packed.items():
            wanted = raw(theirs.get(f"float32/{base}{name}", theirs[base + name]))
            if name == "weight_packed":
                wanted = unsigned_zeros(wanted)
            assert np.array_equal(raw(values), wanted), name
            compared += 1
    assert compared == {"w8a8": 4, "nvfp4": 12}[method]


@pytest.mark.parametrize("method", LAYOUTS)
def test_what_is_packed_is_what_the_package_decompresses(model_of, tmp_path, method):
    """The package's own reader, given the config as it is written, finds the numbers that the grids stand for."""
    chosen = quantized(method, model_of("llama", torch.bfloat16), tmp_path / "q", **fixed(method))
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(settings).config_groups["group_0"]
    reader = BaseCompressor.get_value_from_registry(settings["format"])
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    layout = chosen.written
    firsts = [name for name in tensors if name.endswith(f"_proj.{layout.TENSORS[0]}")]
    assert len(firsts) == 3 * 7
    for first in firsts:
        base = first.removesuffix(layout.TENSORS[0])
        there = {last: tensors[base + last] for last in layout.TENSORS}
        theirs = reader.decompress(dict(there), scheme)["weight"].float().numpy()
        packed = {last: numpy(tensor) for last, tensor in there.items()}
        grid = layout.unpack(packed, SCHEMES[method])
        assert np.array_equal(theirs, torch.from_numpy(grid.weight()).bfloat16().float().numpy())
        again = layout.pack(grid, SCHEMES[method])
        assert all(np.array_equal(raw(values), raw(again[last])) for last, values in packed.items())


def fixed(method):
    """Return the size of groups that a method has no choice of, or one that divides the small models."""
    return {"group_size": {"w8a8": -1, "nvfp4": 16}.get(method, 32)}


def numpy(tensor):
    """Return a tensor as numpy has its type, or as integers of as many bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy()
    return (tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor).numpy()


@pytest.mark.parametrize("method", LAYOUTS)
def test_the_folder_loads_as_a_model_like_the_original(model_of, tmp_path, method):
    source = model_of("llama", torch.bfloat16)
    quantized(method, source, tmp_path / "q", **fixed(method))
    ids = torch.from_numpy(windows().ids)
    with torch.inference_mode():
        theirs, ours = (load_causal_lm(f, silent())(input_ids=ids).logits.float() for f in (source, tmp_path / "q"))
    assert (ours - theirs).norm() < {"w8a8": 0.1, "nvfp4": 0.7}[method] * theirs.norm()
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("method", ["gptq", "w8a8", "nvfp4"])
@pytest.mark.parametrize("name", ["llama", "phi3", "opt"])
def test_scales_of_the_cache_are_those_of_what_the_written_model_puts_there(model_of, tmp_path, name, method):
    options = {**fixed(method), "layout": "compressed-tensors", "kv_cache_dtype": "fp8"}
    source = model_of(name, torch.bfloat16)
    chosen = quantized(method, source, tmp_path / "q", **options)
    with Checkpoint.of(source) as weights:
        planned = chosen.plan(weights.tensors, weights.config).files
    assert planned == {path.name: path.stat().st_size for path in (tmp_path / "q").glob("model*")}
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert QuantizationConfig.model_validate(settings).kv_cache_scheme.num_bits == 8
    model, ids = load_causal_lm(tmp_path / "q", silent()), torch.from_numpy(windows().ids)
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    found = {key: t for key, t in load_file(tmp_path / "q" / "model.safetensors").items() if key.endswith("_scale")}
    scales = {key: t for key, t in found.items() if key.endswith((".k_scale", ".v_scale"))}
    assert len(scales) == 2 * 3
    for key, scale in scales.items():
        layer = cache.layers[int(key.split(".layers.")[1].split(".")[0])]
        put = layer.keys if key.endswith("k_scale") else layer.values
        assert scale.dtype == torch.bfloat16
        assert tuple(scale.shape) == (1,)
        assert scale.item() * 448 == pytest.approx(put.abs().max().item(), rel=0.05)


def test_other_layouts_hold_no_scales_of_the_cache():
    for method in ("gptq", "awq"):
        with pytest.raises(SpecError, match=f"kv_cache_dtype: the layout {method} .*choose layout compressed-tensors"):
            parse(METHODS[method].Options, {"method": method, "kv_cache_dtype": "fp8"})
