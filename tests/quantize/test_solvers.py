"""What rounds one layer: each search on a layer whose inputs are used unequally and together."""

import numpy as np
import pytest
import torch

from backend.progress import silent
from backend.quantize import METHODS
from backend.quantize.calibrated.error_feedback import solve
from backend.quantize.calibrated.refit_scales import refine


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
        after = refine(weight, gram, before, chosen)
        assert loss(weight, gram, after) < loss(weight, gram, before)
        assert np.array_equal(after.q, before.q)
        assert np.array_equal(after.scales.astype(np.float16).astype(np.float32), after.scales)
