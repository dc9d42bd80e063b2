"""Weights that ship in 8 or 4 bits are decoded to what transformers and compressed-tensors make of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from backend.errors import SpecError
from backend.quantize.layouts import compressed_tensors as layout
from backend.quantize.layouts.layout import Grid, Scheme
from backend.weights.checkpoint import Checkpoint
from backend.weights.decoded import decoded, dense, encoded_as
from backend.weights.floats import to_float32

COMPRESSED = Path(__file__).with_name("compressed_tensors.safetensors")
FP8, MXFP4 = {"quant_method": "fp8", "weight_block_size": [128, 128]}, {"quant_method": "mxfp4"}
WEIGHT = "model.layers.0.mlp.up_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def checkpoint(folder, tensors, settings, **config):
    """Save a checkpoint of nothing but these tensors."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    said = {"model_type": "llama", "dtype": "bfloat16", "quantization_config": settings} | config
    (folder / "config.json").write_text(json.dumps(said))
    return Checkpoint.of(folder)


def everything(weights, tensor, piece):
    """Read a tensor in pieces."""
    starts = range(0, tensor.elements, piece)
    raw = np.concatenate([weights.read(tensor, at, min(at + piece, tensor.elements)) for at in starts])
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[tensor.dtype]
    return torch.from_numpy(raw).view(kind).reshape(tensor.shape)


def only(folder, tensors, settings, piece=1000, **config):
    """Decode a checkpoint that holds one weight, and return it."""
    with checkpoint(folder, tensors, settings, **config) as stored:
        weights = decoded(stored)
        [tensor] = weights.tensors
        return everything(weights, tensor, piece)


def eight_bits(*shape, kind=torch.float8_e4m3fn):
    return (torch.randn(shape) * 60).to(kind)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_each_byte_of_an_8_bit_type_is_the_number_that_torch_reads(kind):
    every = np.arange(256, dtype=np.uint8)
    named = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu}[kind]
    expected = torch.from_numpy(every).view(named).float().numpy()
    np.testing.assert_array_equal(to_float32(every, kind), expected)


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize(("shape", "scales"), [((256, 384), (2, 3)), ((384, 128), (3, 1)), ((3, 256, 128), (3, 2, 1))])
def test_fp8_in_blocks_is_what_transformers_makes_of_it(shape, scales, piece, tmp_path):
    weight, scale = eight_bits(*shape), torch.rand(scales) + 0.01
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    found = only(tmp_path, {WEIGHT: weight, WEIGHT + "_scale_inv": scale}, FP8, piece)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(192, 320), (576, 200), (100, 130), (64, 129)])
def test_the_last_block_of_a_row_or_column_is_smaller(shape, tmp_path):
    weight, scale = eight_bits(*shape), torch.rand(-(-shape[0] // 128), -(-shape[1] // 128))
    expected = _dequantize_fp8_weight(weight, scale, (128, 128), torch.float32).bfloat16()
    assert torch.equal(only(tmp_path, {WEIGHT: weight, WEIGHT + "_scale_inv": scale}, FP8), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_are_decoded_to_the_type_of_the_model(dtype, tmp_path):
    weight, scale = eight_bits(128, 256), torch.rand(1, 2, dtype=torch.bfloat16)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, getattr(torch, dtype))
    tensors = {WEIGHT: weight, WEIGHT + "_scale_inv": scale}
    assert torch.equal(only(tmp_path, tensors, FP8, dtype=dtype), expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_fp8_with_one_scale_and_a_scale_of_activations(shape, tmp_path):
    weight, scale = eight_bits(48, 200), torch.full(shape, 0.0371, dtype=torch.bfloat16)
    tensors = {WEIGHT: weight, WEIGHT + "_scale_inv": scale}
    tensors |= {WEIGHT.replace("weight", "activation_scale"): torch.tensor(0.5)}
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    settings = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    assert torch.equal(only(tmp_path, tensors, settings), expected)


@pytest.mark.parametrize("end", ["weight_scale", "scale", "qscale_weight"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scales_of_rows_by_the_names_that_others_give_them(kind, end, tmp_path):
    weight, scale = eight_bits(24, 40, kind=kind), torch.rand(24, 1)
    tensors = {WEIGHT: weight, WEIGHT.replace("weight", end): scale}
    assert torch.equal(only(tmp_path, tensors, {"quant_method": "fbgemm_fp8"}), (weight.float() * scale).bfloat16())


@pytest.mark.parametrize("kind", [torch.uint8, torch.float8_e8m0fnu])
def test_scales_that_are_powers_of_two(kind, tmp_path):
    weight, scale = eight_bits(40, 64), torch.randint(100, 140, (40, 2), dtype=torch.uint8)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    settings = {"quant_method": "mxfp8", "weight_block_size": [1, 32]}
    assert torch.equal(only(tmp_path, {WEIGHT: weight, WEIGHT + "_scale_inv": scale.view(kind)}, settings), expected)


@pytest.mark.parametrize("shape", [(40, 64), (7, 96)])
def test_experts_in_4_bits_beside_matrices_in_8(shape, tmp_path):
    weight = torch.randint(-128, 128, (shape[0], shape[1] // 2), dtype=torch.int8)
    scale = torch.randint(100, 140, (shape[0], shape[1] // 32), dtype=torch.uint8).view(torch.float8_e8m0fnu)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    tensors = {WEIGHT: weight, WEIGHT.replace("weight", "scale"): scale}
    assert torch.equal(only(tmp_path, tensors, FP8 | {"expert_dtype": "fp4"}), expected)


def test_what_a_text_model_within_another_says_of_its_quantization_counts(tmp_path):
    tensors = {WEIGHT: eight_bits(64, 64), WEIGHT + "_scale_inv": torch.rand(1, 1)}
    with checkpoint(tmp_path, tensors, None, text_config={"hidden_size": 64, "quantization_config": FP8}) as stored:
        found = decoded(stored)
    assert [tensor.dtype for tensor in found.tensors] == ["BF16"]
    assert found.config["text_config"] == {"hidden_size": 64}


@pytest.mark.parametrize("piece", [999, 1 << 20])
@pytest.mark.parametrize("shape", [(4, 96, 2, 16), (2, 50, 3, 16), (1, 7, 1, 16)])
def test_mxfp4_is_turned_as_transformers_turns_it(shape, piece, tmp_path):
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8)
    scales = torch.randint(0, 250, shape[:-1], dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales)
    found = only(tmp_path, {EXPERTS + "_blocks": blocks, EXPERTS + "_scales": scales}, MXFP4, piece)
    assert torch.equal(found, expected)


def compressed(case, folder, piece=1000):
    """Return what a case of the package's is decoded to here, and there."""
    with safe_open(COMPRESSED, "pt") as file:
        parts = [name for name in file.keys() if name.startswith(f"{case}/")]  # noqa: SIM118 - it is no dict
        tensors = {WEIGHT.replace("weight", name.rpartition("/")[2]): file.get_tensor(name) for name in parts}
        group = json.loads(file.metadata()["groups"])[case]
    expected = tensors.pop(WEIGHT.replace("weight", "decoded"))
    settings = {"quant_method": "compressed-tensors", "format": group["format"], "config_groups": {"group_0": group}}
    norm = {"model.norm.weight": torch.ones(expected.shape[1])}  # as long as a row, as in any model
    with checkpoint(folder, tensors | norm, settings | {"version": "0.20.1"}) as stored:
        weights = decoded(stored)
        return everything(weights, next(t for t in weights.tensors if t.name == WEIGHT), piece), expected


def cases():
    with safe_open(COMPRESSED, "pt") as file:
        return list(json.loads(file.metadata()["groups"]))


@pytest.mark.parametrize("piece", [97, 1 << 20])
@pytest.mark.parametrize("case", cases())
def test_compressed_tensors_are_what_the_package_makes_of_them(case, piece, tmp_path):
    found, expected = compressed(case, tmp_path, piece)
    assert torch.equal(found, expected)


def test_what_is_not_encoded_is_read_as_it_is(tmp_path):
    norm = torch.randn(64, dtype=torch.float32)
    tensors = {"model.norm.weight": norm, WEIGHT: eight_bits(64, 64), WEIGHT + "_scale_inv": torch.rand(1, 1)}
    with checkpoint(tmp_path, tensors, FP8) as stored:
        weights = decoded(stored)
        by_name = {tensor.name: tensor for tensor in weights.tensors}
        assert by_name.keys() == {"model.norm.weight", WEIGHT}
        assert torch.equal(everything(weights, by_name["model.norm.weight"], 10), norm)
        assert "quantization_config" not in weights.config


@pytest.mark.parametrize("name", ["gptq", "awq", "bitsandbytes"])
def test_weights_in_other_ways_stay_as_they_are(name, tmp_path):
    with checkpoint(tmp_path, {WEIGHT: torch.zeros(4, 4)}, {"quant_method": name}) as stored:
        assert decoded(stored) is stored


@pytest.mark.parametrize(
    "changes",
    [{"format": "nvfp4-pack-quantized"}, {"transform_config": {"config_groups": {"u": {}}}},
     {"quantization_status": "frozen"}, {"sparsity_config": {"format": "sparse-24-bitmask"}},
     {"config_groups": {"a": {"weights": {"num_bits": 9}}}}, {"config_groups": {"a": {"weights": {"num_bits": 4.0}}}},
     {"config_groups": {"W4A16": ["Linear"]}}],
)  # fmt: skip
def test_compressed_tensors_that_are_not_read_here_are_not_taken_for_dense(changes):
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": group}}
    assert encoded_as({"quantization_config": settings}) == "4-bit integers (compressed-tensors)"
    assert encoded_as({"quantization_config": settings | changes}) is None


FLOATS = {"num_bits": 4, "type": "float"}
MXFP4_GROUP = {"format": "mxfp4-pack-quantized", "weights": FLOATS | {"strategy": "group", "group_size": 32}}
NVFP4_GROUP = {"format": "nvfp4-pack-quantized", "weights": FLOATS | {"strategy": "tensor_group", "group_size": 16}}


def of_group(*groups, **settings):
    """Return the settings of a checkpoint of these groups of layers."""
    said = {"quant_method": "compressed-tensors", "format": "mixed-precision"} | settings
    return said | {"config_groups": {f"group_{at}": group for at, group in enumerate(groups)}}


def of_integers(bits, **weights):
    return {"format": "pack-quantized", "weights": {"num_bits": bits, "type": "int"} | weights}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        *(([of_integers(bits)], f"{bits}-bit integers (compressed-tensors)") for bits in range(2, 9)),
        ([MXFP4_GROUP], "MXFP4 (compressed-tensors)"),
        ([NVFP4_GROUP], "NVFP4 (compressed-tensors)"),
        ([NVFP4_GROUP, of_integers(8)], "8-bit integers and NVFP4 (compressed-tensors)"),
        ([of_integers(4), {"targets": ["Attention"], "weights": None}], "4-bit integers (compressed-tensors)"),
        ([of_integers(1)], None),
        ([MXFP4_GROUP | {"format": "nvfp4-pack-quantized"}], None),
        ([MXFP4_GROUP | {"format": ["mxfp4-pack-quantized"]}], None),
        ([{"format": "mxfp6-pack-quantized", "weights": {"num_bits": 6, "type": "float", "group_size": 32}}], None),
        ([of_integers(4), {"weights": {}}], None),
    ],
)
def test_each_format_is_said_by_its_name(groups, words):
    settings = of_group(*groups, kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})
    assert encoded_as({"quantization_config": settings}) == words


PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "channel", "type": "int"}}},
}
UP = WEIGHT.removesuffix(".weight")
BLOCKS = {EXPERTS + "_blocks": torch.zeros(2, 8, 2, 16, dtype=torch.uint8)}
WORDS = {f"{UP}.weight_packed": torch.zeros(8, 4, dtype=torch.int32), f"{UP}.weight_scale": torch.ones(8, 1)}


THREE = of_group(of_integers(3, strategy="group", group_size=16))
ASYMMETRIC = of_group(of_integers(3, strategy="group", group_size=32, symmetric=False))
PAIRS = {f"{UP}.weight_packed": torch.zeros(8, 32, dtype=torch.uint8)}
POWERS = {f"{UP}.weight_scale": torch.zeros(8, 2, dtype=torch.uint8)}
EIGHTHS = {f"{UP}.weight_scale": torch.zeros(8, 4).to(torch.float8_e4m3fn)}
GLOBAL = {f"{UP}.weight_global_scale": torch.ones(1)}


def words_of(columns, groups):
    """Return packed codes of eight rows, with scales."""
    return {
        f"{UP}.weight_packed": torch.zeros(8, columns, dtype=torch.int32),
        f"{UP}.weight_scale": torch.ones(8, groups),
    }


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        ({WEIGHT: eight_bits(8, 8)}, FP8, rf"'{WEIGHT}' is a matrix in 8 bits without its scale, '{WEIGHT}_scale_inv'"),
        ({WEIGHT: eight_bits(8, 8), WEIGHT + "_scale_inv": torch.ones(3, 1)}, FP8,
         rf"'{WEIGHT}_scale_inv' has 3 × 1 scales for 8 × 8 weights"),
        ({WEIGHT: torch.ones(8, 8), WEIGHT + "_scale_inv": torch.ones(1, 1)}, FP8,
         rf"'{WEIGHT}_scale_inv' scales weights that are not there in 8 bits"),
        ({WEIGHT: eight_bits(8, 8), WEIGHT + "_scale_inv": torch.ones(1, 1, dtype=torch.int32)}, FP8,
         rf"'{WEIGHT}_scale_inv' holds scales of the type I32"),
        ({WEIGHT: eight_bits(0, 8), WEIGHT + "_scale_inv": torch.ones(1, 1)}, FP8,
         rf"'{WEIGHT}' has 0 × 8 numbers, which is no matrix"),
        ({WEIGHT: eight_bits(1, 1).expand(1, (1 << 23) + 1), WEIGHT + "_scale_inv": torch.ones(1, 1)}, FP8,
         rf"'{WEIGHT}' has 1 × 8388609 numbers, which is no matrix"),
        (BLOCKS, MXFP4, rf"'{EXPERTS}_blocks' lacks its scales, '{EXPERTS}_scales'"),
        (BLOCKS | {EXPERTS + "_scales": torch.zeros(2, 8, 3, dtype=torch.uint8)}, MXFP4,
         rf"'{EXPERTS}_scales' has 2 × 8 × 3 scales for blocks of 2 × 8 × 2 × 16 bytes"),
        ({EXPERTS + "_scales": torch.zeros(2, 8, 3, dtype=torch.uint8)}, MXFP4,
         rf"'{EXPERTS}_scales' scales blocks that are not there"),
        ({f"{UP}.weight_packed": torch.zeros(8, 4, dtype=torch.int32)}, PACKED,
         rf"'{UP}.weight_packed' lacks its scale, '{UP}.weight_scale'"),
        (WORDS | {f"{UP}.weight_scale": torch.ones(5, 1)}, PACKED,
         rf"'{UP}.weight_scale' has 5 × 1 scales for 8 × 32 weights"),
        (WORDS | {f"{UP}.weight_zero_point": torch.zeros(8, 1, dtype=torch.int32)}, PACKED,
         rf"'{UP}.weight_zero_point' has 8 × 1 words of zeros where 1 × 1 belong"),
        (WORDS | {f"{UP}.weight_g_idx": torch.zeros(32, dtype=torch.int32)}, PACKED,
         rf"'{UP}.weight_g_idx' belongs to weights that are not there"),
        (words_of(7, 4), THREE, rf"'{UP}.weight_packed' may be packed as compressed-tensors did before 0.18"),
        (words_of(5, 3), THREE, rf"'{UP}.weight_packed' may be packed as compressed-tensors did before 0.18"),
        (words_of(5, 3), THREE | {"version": "0.17.1"}, "may be packed as compressed-tensors did before 0.18"),
        (words_of(9, 4), THREE, rf"'{UP}.weight_packed' has 8 × 9 words with 8 × 4 scales, which fits no grid"),
        (words_of(6, 2), ASYMMETRIC, rf"'{UP}.weight_packed' lacks its zeros, '{UP}.weight_zero_point'"),
        (words_of(6, 2) | {f"{UP}.weight_zero_point": torch.zeros(2, 2, dtype=torch.int32)}, ASYMMETRIC,
         rf"'{UP}.weight_zero_point' has 2 × 2 words of zeros where 1 × 2 belong"),
        (PAIRS, of_group(MXFP4_GROUP), rf"'{UP}.weight_packed' lacks its scale, '{UP}.weight_scale'"),
        (PAIRS | {f"{UP}.weight_scale": torch.zeros(8, 3, dtype=torch.uint8)}, of_group(MXFP4_GROUP),
         rf"'{UP}.weight_scale' has 8 × 3 scales for 8 × 64 weights"),
        (PAIRS | {f"{UP}.weight_scale": torch.ones(8, 2)}, of_group(MXFP4_GROUP),
         rf"'{UP}.weight_scale' holds F32 for weights of 8 × 32"),
        (PAIRS | EIGHTHS | GLOBAL, of_group(MXFP4_GROUP),
         rf"'{UP}.weight_scale' has 8 × 4 scales of the type F8_E4M3 for 8 × 64 weights"),
        (PAIRS | POWERS | GLOBAL, of_group(MXFP4_GROUP),
         rf"'{UP}.weight_global_scale' belongs to weights that are not"),
        (PAIRS | POWERS, PACKED, rf"'{UP}.weight_scale' has 8 × 2 scales of the type U8 for 8 × 64 weights"),
        (PAIRS | EIGHTHS, of_group(NVFP4_GROUP),
         rf"'{UP}.weight_packed' lacks its global scale, '{UP}.weight_global_scale'"),
        (PAIRS | EIGHTHS | {f"{UP}.weight_global_scale": torch.ones(8)}, of_group(NVFP4_GROUP),
         rf"'{UP}.weight_global_scale' has 8 numbers of the type F32 where one of F32 belongs"),
        ({WEIGHT: torch.zeros(8, 8, dtype=torch.int8), f"{WEIGHT}_scale": torch.ones(8, 1)},
         of_group({"format": "int-quantized", "weights": {"num_bits": 8, "type": "int", "symmetric": False}}),
         rf"'{WEIGHT}' lacks its zeros, '{WEIGHT}_zero_point'"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_belong_together_are_named_in_a_sentence(tensors, settings, words, tmp_path):
    with checkpoint(tmp_path, tensors, settings) as stored, pytest.raises(SpecError, match=words):
        dense(stored.tensors, stored.config)


def test_a_packed_matrix_whose_shape_says_otherwise_is_named(tmp_path):
    tensors = WORDS | {f"{UP}.weight_shape": torch.tensor([8, 30])}
    with pytest.raises(SpecError, match=rf"'{UP}.weight_shape' says 8 × 30, and what lies there makes 8 × 32"):
        only(tmp_path, tensors, PACKED)


def test_a_row_whose_length_no_other_tensor_tells_is_compared_with_the_stored_one(tmp_path):
    tensors = words_of(5, 1) | {f"{UP}.weight_shape": torch.tensor([8, 45])}
    settings = of_group(of_integers(3, strategy="channel"))
    with pytest.raises(SpecError, match=rf"'{UP}.weight_shape' says 8 × 45, and what lies there makes 8 × 53"):
        only(tmp_path, tensors, settings)


def test_layers_of_several_bits_are_told_apart_by_the_lengths_of_their_rows(tmp_path):
    four, eight = f"{UP}.weight", WEIGHT.replace("up_proj", "down_proj")
    tensors = {f"{name}_scale": torch.ones(64, 1, dtype=torch.bfloat16) for name in (four, eight)}
    tensors[f"{four}_packed"] = torch.full((64, 8), 0x77777777, dtype=torch.int32)
    tensors[f"{eight}_packed"] = torch.full((64, 16), 0x7F7F7F7F, dtype=torch.int32)
    settings = of_group(of_integers(4, strategy="channel"), of_integers(8, strategy="channel"))
    with checkpoint(tmp_path, tensors | {"model.norm.weight": torch.ones(64)}, settings) as stored:
        weights = decoded(stored)
        found = {tensor.name: everything(weights, tensor, 1000) for tensor in weights.tensors}
    assert torch.equal(found[four], -torch.ones(64, 64).bfloat16())
    assert torch.equal(found[eight], -torch.ones(64, 64).bfloat16())


def test_scales_of_the_cache_and_of_activations_are_left_out(tmp_path):
    beside = [f"model.layers.0.self_attn.{kind}_{part}" for kind in "qkv" for part in ("scale", "zero_point")]
    beside += [f"{UP}.input_global_scale", f"{UP}.input_scale", "model.layers.0.self_attn.k_proj.output_scale"]
    tensors = PAIRS | EIGHTHS | GLOBAL | {name: torch.ones(1) for name in beside}
    settings = of_group(NVFP4_GROUP, kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})
    assert only(tmp_path, tensors, settings).shape == (8, 64)


@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", layout.BITS)
def test_what_the_layout_writes_is_read_as_the_grid_that_it_was_given(bits, symmetric, group_size, tmp_path):
    random, groups = np.random.default_rng(bits), 96 // group_size if group_size > 0 else 1
    codes = random.integers(0, 1 << bits, (64, 96), np.uint8)
    zeros = np.full((64, groups), 1 << (bits - 1), np.uint8)
    if not symmetric:
        zeros = random.integers(0, 1 << bits, (64, groups), np.uint8)
    scales = to_float32(random.integers(0x3C00, 0x3F80, (64, groups), np.uint16).reshape(-1).view(np.uint8), "BF16")
    grid = Grid(codes, scales.reshape(64, groups), zeros, np.arange(96, dtype=np.int32) // (96 // groups))
    scheme = Scheme(bits, group_size, symmetric=symmetric, dtype="BF16")
    parts = {
        f"{UP}.{name}": torch.from_numpy(np.ascontiguousarray(part)) for name, part in layout.pack(grid, scheme).items()
    }
    parts[f"{WEIGHT}_scale"] = parts[f"{WEIGHT}_scale"].view(torch.bfloat16).reshape(64, groups)
    assert torch.equal(only(tmp_path, parts, layout.config(scheme)), torch.from_numpy(grid.weight()).bfloat16())
