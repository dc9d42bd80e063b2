"""Refitting: when the integers are known, the scales that suit them best, by least squares."""

from typing import Any

import numpy as np

from backend.quantize.calibrated.numbers import Numbers
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.layouts.layout import Grid

ROWS = 1024
"""Outputs at a time: each has a matrix of groups by groups."""

FARTHEST = 0.3
"""By what share a scale may change; beyond, the Gram matrix says little of it."""


def refit(weight: Any, gram: Any, grid: Grid, options: CalibratedOptions) -> Grid:
    """Return a grid with the same integers and the scales s that minimize the layer's error tr((W - D·s) H (W - D·s)').

    With D = q - zero that is a linear system for each output, one unknown a group. An output keeps its scales where
    rounding the new ones to what can be stored has lost what they gained.

    Args:
        weight: W, float32 [out_features, in_features].
        gram: H, float32 [in_features, in_features]; damped as for error feedback.
        grid: As solve() found it.
        options: How much is damped, and which scales can be stored.
    """
    import torch

    damped = gram.clone()
    damped.diagonal().add_(options.damp_percent * gram.diagonal().mean())
    g_idx = torch.from_numpy(grid.g_idx).long().to(gram.device)
    size = len(g_idx) // grid.scales.shape[1]
    order = g_idx.argsort(stable=True)  # groups side by side
    damped = damped[order][:, order]
    found = []
    for first in range(0, len(weight), ROWS):
        part = slice(first, first + ROWS)
        q, zeros, scales = (
            torch.from_numpy(values[part].astype(np.float32)).to(gram.device)
            for values in (grid.q, grid.zeros, grid.scales)
        )
        steps = (q - zeros[:, g_idx])[:, order]
        pull = ((weight[part][:, order] @ damped) * steps).unflatten(1, (-1, size)).sum(2)
        mutual = torch.stack(
            [
                ((steps[:, at : at + size] @ damped[at : at + size]) * steps).unflatten(1, (-1, size)).sum(2)
                for at in range(0, len(order), size)
            ],
            1,
        )
        found.append(_better(mutual, pull, scales, options.numbers))
    return grid._replace(scales=torch.cat(found).cpu().numpy())


def _better(mutual: Any, pull: Any, scales: Any, numbers: Numbers) -> Any:
    """Minimize s'As - 2b's from where the scales are.

    Args:
        mutual: A, [outputs, groups, groups].
        pull: b, [outputs, groups].
        scales: s so far, [outputs, groups].
        numbers: Say which scales can be stored.
    """
    import torch

    def loss(s: Any) -> Any:
        return (s * ((mutual @ s[:, :, None])[:, :, 0] - 2 * pull)).sum(1)

    small = 1e-6 * mutual.diagonal(dim1=1, dim2=2).mean(1) + 1e-30
    stable = mutual + small[:, None, None] * torch.eye(mutual.shape[1], device=mutual.device)
    step = torch.linalg.solve(stable, pull - (mutual @ scales[:, :, None])[:, :, 0])
    allowed = FARTHEST * scales.abs()
    new = numbers.storable(scales + step.clamp(-allowed, allowed))
    return torch.where((loss(new) < loss(scales))[:, None], new, scales)
