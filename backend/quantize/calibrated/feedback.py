"""Error feedback: what rounding a weight has lost, those after it make up for (GPTQ, arXiv 2210.17323, §3)."""

from typing import Any

from backend.progress import Report
from backend.quantize.calibrated.grids import Scales, best, round_to
from backend.quantize.calibrated.options import CalibratedOptions, Grid

BLOCK = 32
"""Inputs that are rounded before what they have lost is spread over all that follow."""

DAMPER = 10.0
"""By how much more is damped where a Gram matrix is not positive definite."""


def solve(weight: Any, gram: Any, options: CalibratedOptions, report: Report) -> Grid:
    """Round a layer's weights.

    Args:
        weight: float32 [out_features, in_features].
        gram: Of its inputs, float32 [in_features, in_features].
        options: What is done.
        report: Told where more had to be damped.
    """
    import torch

    inputs, size = weight.shape[1], options.group(weight.shape[1])
    order = torch.arange(inputs, device=gram.device)
    if options.reordered:
        order = gram.diagonal().argsort(descending=True, stable=True)
        gram = gram[order][:, order]
    rows = weight.T[order].contiguous()
    root = inverse_root(gram, options.damp_percent, report)
    if not options.error_feedback:
        root = None
    q = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    scales, zeros = [], []
    for first in range(0, inputs, BLOCK):
        last = first + BLOCK
        if first % size == 0:
            grid = best(rows[first : first + size], _metric(gram, root, first, first + size), options)
            scales.append(grid.scale)
            zeros.append(grid.zero)
        if root is None:
            q[first:last] = round_to(rows[first:last], grid, options.top)
            continue
        q[first:last], errors = _round(rows[first:last], root[first:last, first:last], grid, options.top)
        rows[last:].addmm_(root[first:last, last:].T, errors, alpha=-1)
    place = torch.empty_like(order)
    place[order] = torch.arange(inputs, device=order.device)
    return Grid(
        q[place].T.contiguous().cpu().numpy(),
        torch.stack(scales, 1).cpu().numpy(),
        torch.stack(zeros, 1).to(torch.uint8).cpu().numpy(),
        (place // size).to(torch.int32).cpu().numpy(),
    )


def _round(rows: Any, root: Any, grid: Scales, top: int) -> tuple[Any, Any]:
    """Round some inputs one after the other.

    Returns:
        The integers, and what each has lost as the inputs after it are to make up for; both as `rows`.
    """
    import torch

    q, errors = torch.empty_like(rows), torch.empty_like(rows)
    steps = 1 / root.diagonal()
    for j in range(len(rows)):
        q[j] = round_to(rows[j], grid, top)
        errors[j] = (rows[j] - (q[j] - grid.zero) * grid.scale) * steps[j]
        rows[j + 1 :].addr_(root[j, j + 1 :], errors[j], alpha=-1)
    return q, errors


def _metric(gram: Any, root: Any, first: int, last: int) -> Any:
    """Give what errors of a group cost; with feedback, what they cost after all later inputs made up for them."""
    import torch

    if root is None:
        return gram[first:last, first:last]
    part = root[first:last, first:last]
    return torch.cholesky_inverse(part, upper=True)


def inverse_root(gram: Any, damp: float, report: Report) -> Any:
    """Give the upper triangular U with U'U = (gram + damping)⁻¹.

    Args:
        gram: float32 [n, n]; where its diagonal is 0 an input was never used, and is left alone.
        damp: Share of the mean diagonal that is added.
        report: Told where more had to be.
    """
    import torch

    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp(min=1e-12)
    while True:
        damped = gram.clone()
        damped.diagonal().add_(damp * mean + (diagonal == 0) * mean)
        for exact in (damped, damped.double()):
            lower, failed = torch.linalg.cholesky_ex(exact)
            if not failed:
                inverse = torch.cholesky_inverse(lower)
                upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
                if not failed and torch.isfinite(upper).all():
                    return upper.float()
        report.log(f"A Gram matrix is not positive definite: damping {damp:g} becomes {damp * DAMPER:g}.")
        damp *= DAMPER
