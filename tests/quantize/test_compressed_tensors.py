"""The layout compressed-tensors: what is written is what the package itself, transformers and our own decoder read."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils import match_named_modules
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from backend.errors import SpecError
from backend.models.loading import load_causal_lm
from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.windows import Windows
from backend.quantize.layouts import LAYOUTS
from backend.quantize.layouts.layout import Grid, Matrix, Scheme
from backend.serve.engines.transformers_server import _told
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.quantize.test_calibrated import facts_of
from tests.support.family_models import make

LAYOUT = LAYOUTS["compressed-tensors"]
SCHEMES = [Scheme(bits, group, sym, dtype="F32") for bits in range(2, 9) for group in (32, -1) for sym in (True, False)]


def grid_of(scheme, outputs=96, inputs=64):
    random = np.random.default_rng(scheme.bits)
    groups = scheme.groups(inputs)
    zeros = random.integers(0, 2**scheme.bits, (outputs, groups)).astype(np.uint8)
    return Grid(
        random.integers(0, 2**scheme.bits, (outputs, inputs)).astype(np.uint8),
        random.normal(size=(outputs, groups)).astype(np.float16).astype(np.float32),
        np.full_like(zeros, 2 ** (scheme.bits - 1)) if scheme.symmetric else zeros,
        (np.arange(inputs) // (inputs // groups)).astype(np.int32),
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.bits}-bit {s.group_size} {s.symmetric}")
def test_the_package_decompresses_to_the_numbers_of_the_grid(scheme):
    grid = grid_of(scheme)
    held = {name: torch.from_numpy(values) for name, values in LAYOUT.pack(grid, scheme).items()}
    held["weight_scale"] = held["weight_scale"].view(torch.float32).reshape(grid.scales.shape)
    settings = LAYOUT.config(scheme)["config_groups"]["group_0"]
    read = BaseCompressor.get_value_from_registry("pack-quantized").decompress(held, QuantizationScheme(**settings))
    assert np.array_equal(read["weight"].numpy(), grid.weight())


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_grid_is_read_back_as_it_was(dtype):
    for scheme in SCHEMES:
        scheme, grid = scheme._replace(dtype=dtype), grid_of(scheme)
        exact = grid._replace(scales=torch.from_numpy(grid.scales).bfloat16().float().numpy())
        slots = {slot.name: slot for slot in LAYOUT.slots(Matrix("a.weight", (96, 64)), scheme)}
        packed = LAYOUT.pack(exact, scheme)
        assert {f"a.{name}": values.nbytes for name, values in packed.items()} == {n: s.bytes for n, s in slots.items()}
        assert all(np.array_equal(a, b) for a, b in zip(exact, LAYOUT.unpack(packed, scheme), strict=True))
        assert LAYOUT.scheme(LAYOUT.config(scheme))._replace(dtype=dtype) == scheme


@pytest.mark.parametrize("options", [{}, {"bits": 3, "sym": False}, {"bits": 8, "group_size": -1}], ids=str)
def test_transformers_and_our_decoder_read_the_same_model(tmp_path, options):
    source, made = make("Llama", tmp_path / "source"), tmp_path / "made"
    made.mkdir()
    chosen = METHODS["gptq"].Options(**{"group_size": 32, "layout": "compressed-tensors", **options})
    with Checkpoint.of(source) as weights:
        windows = Windows("random", np.random.default_rng(0).integers(2, 99, (4, 32)))
        METHODS["gptq"].quantize(weights, Output(made), chosen, windows, silent())
        planned = chosen.plan(weights.tensors, weights.config).files
    assert planned == {path.name: path.stat().st_size for path in made.glob("model*")}
    ids = torch.arange(2, 34)[None]
    with torch.inference_mode():
        ours = load_causal_lm(made, silent())(input_ids=ids).logits.float()
        # transformers 5.24 has no room for packed zeros unless it unpacks all at once
        unpacked = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if "sym" in options else {}
        model, found = AutoModelForCausalLM.from_pretrained(made, dtype="auto", output_loading_info=True, **unpacked)
        theirs = model(input_ids=ids).logits.float()
        plain = load_causal_lm(source, silent())(input_ids=ids).logits.float()
    assert not any(found.values())
    assert torch.allclose(ours, theirs, atol=1e-2 * ours.abs().max().item())
    assert 0 < (ours - plain).norm() < 0.9 * plain.norm()


def test_the_server_unpacks_at_once_what_transformers_has_no_room_for_and_nothing_else():
    asymmetric, symmetric = (LAYOUT.config(Scheme(4, 32, symmetric=sym)) for sym in (False, True))
    cache_alone = {**symmetric, "config_groups": {"group_0": {"targets": ["Linear"], "weights": None}}}
    found = [_told({"quantization_config": settings}) for settings in (asymmetric, symmetric, cache_alone)]
    assert found[0]["quantization_config"].dequantize
    assert found[1:] == [{}, {}]


def test_the_head_and_what_stays_are_named_for_every_reader():
    settings = LAYOUT.config(Scheme(4, 32), ("visual", "layers.0.mlp.gate"))
    model = torch.nn.ModuleDict({"visual": torch.nn.Linear(2, 2), "lm_head": torch.nn.Linear(2, 2)})
    targets = settings["config_groups"]["group_0"]["targets"]
    assert not list(match_named_modules(model, targets, settings["ignore"]))


def test_a_model_whose_layers_are_no_linear_ones_is_refused():
    facts = facts_of("transformer.h.0.mlp.c_fc.weight 64 256", model_type="gpt2")
    facts = facts.model_copy(update={"model_type": "gpt2"})
    with pytest.raises(SpecError, match=r"layout: its readers find no .*'gpt2': choose layout gptq"):
        METHODS["gptq"].Options(group_size=32, layout="compressed-tensors").check(facts)
