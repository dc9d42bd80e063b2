"""Error feedback: what rounding a weight has lost, those after it make up for (GPTQ, arXiv 2210.17323, §3)."""

from collections.abc import Callable
from typing import Any

from backend.progress import Report
from backend.quantize.calibrated.grids import Scales, best, round_to
from backend.quantize.calibrated.numbers import Numbers
from backend.quantize.calibrated.options import CalibratedOptions
from backend.quantize.layouts.layout import Grid

BLOCK = 32
"""Inputs that are rounded before what they have lost is spread over all that follow; a group at most."""

DAMPER = 10.0
"""By how much more is damped where a Gram matrix is not positive definite."""


def solve(weight: Any, gram: Any, options: CalibratedOptions, report: Report) -> Grid:
    """Round a layer's weights.

    Args:
        weight: float32 [out_features, in_features].
        gram: Of its inputs, float32 [in_features, in_features].
        options: What is done.
        report: Receives where more had to be damped.
    """
    import torch

    inputs, size = weight.shape[1], options.group(weight.shape[1])
    order = _order(gram.diagonal(), size, options.reordered)
    gram, rows = gram[order][:, order], weight.T[order].contiguous()
    root = inverse_root(gram, options.damp_percent, report) if options.error_feedback else None
    q = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    grids = []
    length = min(BLOCK, size)
    for first in range(0, inputs, length):
        block, later = slice(first, first + length), slice(first + length, None)
        if first % size == 0:
            group = slice(first, first + size)
            grids.append(best(rows[group], _cost(gram[group, group], root, group), options))
        if root is None:
            q[block] = round_to(rows[block], grids[-1], options.numbers)
        else:
            q[block], errors = _round(rows[block], root[block, block], grids[-1], options.numbers)
            rows[later].addmm_(root[block, later].T, errors, alpha=-1)
    place = order.argsort()
    g_idx = place // size
    number = torch.arange(len(grids), device=g_idx.device) if options.reordered else g_idx[::size]
    return Grid(
        q[place].T.contiguous().cpu().numpy(),
        torch.stack([grid.scale for grid in grids], 1)[:, number].cpu().numpy(),
        torch.stack([grid.zero for grid in grids], 1)[:, number].to(torch.uint8).cpu().numpy(),
        number.argsort()[g_idx].to(torch.int32).cpu().numpy(),
    )


def _order(used: Any, size: int, free: bool) -> Any:
    """Return the order in which inputs are rounded: those that are used most come first and so get the least of errors.

    Args:
        used: Mean square of each input, [in_features].
        size: Of a group.
        free: Whether groups are made in that order; else each stays together, and its neighbors are its own.
    """
    if free:
        return used.argsort(descending=True, stable=True)
    groups = used.reshape(-1, size)
    inside = groups.argsort(dim=1, descending=True, stable=True)
    first = groups.sum(1).argsort(descending=True, stable=True)
    return (first[:, None] * size + inside[first]).reshape(-1)


def _round(rows: Any, root: Any, grid: Scales, numbers: Numbers) -> tuple[Any, Any]:
    """Round some inputs one after the other.

    Returns:
        The integers, and what each has lost as the inputs after it are to make up for; both as `rows`.
    """
    import torch

    q, errors = torch.empty_like(rows), torch.empty_like(rows)
    steps = 1 / root.diagonal()
    for j in range(len(rows)):
        q[j] = round_to(rows[j], grid, numbers)
        errors[j] = (rows[j] - (q[j] - grid.zero) * grid.scale) * steps[j]
        rows[j + 1 :].addr_(root[j, j + 1 :], errors[j], alpha=-1)
    return q, errors


def _cost(gram: Any, root: Any, group: slice) -> Callable[[Any], Any]:
    """Return what errors of a group cost each output; with feedback, what is left when later inputs made up for them.

    That is exact for the errors that feedback leaves, which nobody knows before the grid is chosen. With those of plain
    rounding in their place, counting each alone (arXiv 2210.17323, equation 3) does better on other text.
    """
    if root is None:
        return lambda error: (gram @ error).mul_(error).sum(0)
    weights = root.diagonal()[group] ** -2
    return lambda error: weights @ error.square_()


def inverse_root(gram: Any, damp: float, report: Report) -> Any:
    """Return the upper triangular U with U'U = (gram + damping)⁻¹.

    Args:
        gram: float32 [n, n]; where its diagonal is 0 an input was never used, and is left alone.
        damp: Share of the mean diagonal that is added.
        report: Receives where more had to be.
    """
    import torch

    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp(min=1e-12)
    while True:
        for dtype in (torch.float32, torch.float64):
            upper = _upper(_damped(gram, damp * mean + (diagonal == 0) * mean).to(dtype))
            if upper is not None:
                return upper.float()
        report.log(f"A Gram matrix is not positive definite: damping {damp:g} becomes {damp * DAMPER:g}.")
        damp *= DAMPER


def _damped(gram: Any, added: Any) -> Any:
    damped = gram.clone()
    damped.diagonal().add_(added)
    return damped


def _upper(matrix: Any) -> Any:
    """Return the upper triangular U with U'U = matrix⁻¹; None where that cannot be computed.

    Each matrix goes as soon as the next is there: of a wide layer one has gigabytes.
    """
    import torch

    lower, failed = torch.linalg.cholesky_ex(matrix)
    del matrix
    if failed:
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    return upper if not failed and torch.isfinite(upper).all() else None
