"""What rounds one layer: each search on a layer whose inputs are used unequally and together."""

import numpy as np
import pytest
import torch

from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.channel_scales import _nearest, search
from backend.quantize.calibrated.error_feedback import solve
from backend.quantize.calibrated.grids import candidates
from backend.quantize.calibrated.refit_scales import refit


def layer(outputs=96, inputs=128, tokens=512):
    """A layer whose inputs are used unequally and together, as those of a language model are."""
    torch.manual_seed(0)
    together = torch.randn(tokens, 24) @ torch.randn(24, inputs) / 5 + 0.3 * torch.randn(tokens, inputs)
    x = together * torch.logspace(-1, 0.5, inputs)
    return torch.randn(outputs, inputs) / 8, x.T @ x / tokens


def loss(weight, gram, grid):
    error = (torch.from_numpy(grid.weight()) - weight).double()
    return ((error @ gram.double()) * error).sum().item()


@pytest.mark.parametrize("options", [{}, {"sym": False}, {"sym": False, "bits": 3}, {"desc_act": True}])
def test_each_search_brings_a_layer_closer(options):
    weight, gram = layer()
    made = METHODS["gptq"].Options
    plain, clipped, both = (
        loss(weight, gram, solve(weight, gram, made(group_size=32, **options, **search), silent()))
        for search in (
            {"error_feedback": False, "clip_search": False},
            {"error_feedback": False},
            {},
        )
    )
    assert both < 0.85 * clipped
    assert clipped < plain


def test_scales_are_numbers_that_float16_and_bfloat16_hold():
    weight, gram = layer()
    for factor in (1, 1e-4, 300):
        grid = solve(weight * factor, gram, METHODS["gptq"].Options(group_size=32), silent())
        scales = torch.from_numpy(grid.scales)
        assert torch.equal(scales.half().float(), scales)
        assert torch.equal(scales.bfloat16().float(), scales)


def test_a_gram_matrix_of_few_tokens_is_damped_until_it_can_be_used():
    weight, _ = layer()
    x = torch.randn(3, 128)
    x[:, 5] = 0  # an input that was never used
    grid = solve(weight, x.T @ x, METHODS["gptq"].Options(group_size=32), silent())
    nearest = solve(weight, x.T @ x, METHODS["gptq"].Options(group_size=32, error_feedback=False), silent())
    assert np.isfinite(grid.weight()).all()
    assert abs(torch.from_numpy(grid.weight()) - weight)[:, 5].max() < 2 * abs(nearest.scales).max()


def test_refined_scales_bring_a_layer_closer_and_are_numbers_that_can_be_stored():
    weight, gram = layer()
    for options in ({}, {"sym": False}, {"desc_act": True}, {"bits": 3}):
        chosen = METHODS["gptq"].Options(group_size=32, **options)
        before = solve(weight, gram, chosen, silent())
        after = refit(weight, gram, before, chosen)
        assert loss(weight, gram, after) < loss(weight, gram, before)
        assert np.array_equal(after.q, before.q)
        assert np.array_equal(after.scales.astype(np.float16).astype(np.float32), after.scales)


def on_a_grid(weight, steps=8, kind=torch.bfloat16):
    """Round weights as Q4_0 does: groups of 32, the outermost weight 8 steps from 0, a scale in float16."""
    groups = weight.unflatten(1, (-1, 32))
    outermost = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (outermost / -steps).half().float()
    q = (groups / scale).round().clamp(-8, 7)
    return (q * scale).flatten(1).to(kind).float()


@pytest.mark.parametrize("steps", [8, 7])
@pytest.mark.parametrize(
    ("method", "options"),
    [("gptq", {}), ("gptq", {"sym": False}), ("gptq", {"sym": False, "clip_search": False}), ("awq", {})],
)
def test_weights_that_lie_on_a_grid_lose_next_to_nothing(method, options, steps):
    weight, gram = layer()
    weight = on_a_grid(weight, steps)
    chosen = METHODS[method].Options(group_size=32, **options)
    grid = refit(weight, gram, solve(weight, gram, chosen, silent()), chosen)
    everything = ((weight.double() @ gram.double()) * weight).sum().item()
    assert loss(weight, gram, grid) < 1e-5 * everything  # a search leaves 30 to 60 times as much


def test_a_scale_of_channels_is_not_searched_for_weights_on_a_grid():
    weight, gram = layer()
    chosen, magnitude = METHODS["gptq"].Options(group_size=32, sym=False), gram.diagonal().sqrt()
    assert (search(weight, gram, magnitude, chosen) != 1).any()
    assert (search(on_a_grid(weight), gram, magnitude, chosen) == 1).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_other_weights_are_searched_as_before(bits, sym):
    weight, _ = layer()
    rows = weight.T[:32]
    options = METHODS["gptq"].Options(group_size=32, sym=sym, bits=bits, clip_search=False)
    [grid] = candidates(rows, options)
    high, low = rows.amax(0), rows.amin(0)
    reach = torch.maximum(high, -low) / ((options.top + 1) // 2) if sym else (high - low) / options.top
    assert torch.allclose(grid.scale.abs(), reach, rtol=2**-8)


@pytest.mark.parametrize(("method", "share"), [("w8a8", 0.5), ("nvfp4", 0.95)])
def test_scales_of_channels_lose_less_where_inputs_are_rounded_too_and_never_more_than_none(method, share):
    """The error of outputs, of weights and inputs as they are rounded, on tokens that the search has not seen."""
    options, rounds = METHODS[method].Options(), METHODS[method].Options().rounds_inputs

    def lost(scale):
        scaled = weight * scale
        inputs = rounds(unseen / scale)
        return (inputs @ _nearest(scaled, options).T - unseen @ weight.T).square().sum().item()

    for outlier in (1, 50):
        weight, gram = layer()
        x = torch.randn(1024, 128) * gram.diagonal().sqrt()
        x[:, 7] *= outlier
        seen, unseen = x[:512], x[512:]
        gram = seen.T @ seen / len(seen)
        none, searched = torch.ones(128), search(weight, gram, gram.diagonal().sqrt(), options, seen)
        assert lost(searched) <= lost(none)
        assert lost(searched) < share * lost(none) or outlier == 1
