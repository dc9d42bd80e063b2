"""Grids: the scale and zero of each group of weights, found by trying some and keeping what loses least.

Weights lie as [inputs, out_features] here: what is done to one input after the other is then done to whole rows.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from backend.quantize.calibrated.options import CalibratedOptions

SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a group's range that are tried."""

TINY = 2.0**-24  # the smallest float16 above 0


class Scales(NamedTuple):
    """Grids of one group: the weight is (q - zero) · scale; both float32 [out_features]."""

    scale: Any
    zero: Any


def storable(scale: Any) -> Any:
    """Return the nearest scales that both float16, which is stored, and bfloat16, which vLLM may compute in, hold."""
    import torch

    kept = scale.bfloat16().half().float()
    return torch.where(kept == 0, TINY, kept)


def candidates(rows: Any, options: CalibratedOptions) -> Iterator[Scales]:
    """Yield grids for a group, the widest first.

    Args:
        rows: Weights, float32 [inputs of the group, out_features].
        options: Bits, symmetry, and whether narrower grids are wanted.
    """
    high, low = rows.amax(0).clamp(min=0), rows.amin(0).clamp(max=0)
    shrinks = SHRINK if options.clip_search else SHRINK[:1]
    if options.symmetric:
        yield from _symmetric(high, low, shrinks, options.top)
        return
    for shrink in shrinks:
        scale = storable((high - low) * (shrink / options.top))
        yield Scales(scale, (-low * shrink / scale).round().clamp(options.LAYOUT.LOWEST, options.top))


def _symmetric(high: Any, low: Any, shrinks: tuple[float, ...], top: int) -> Iterator[Scales]:
    """Yield grids with the zero in the middle; one more step lies below it, which a negative scale puts above."""
    import torch

    middle = (top + 1) // 2
    sign = torch.where(high > -low, -1.0, 1.0)
    largest = torch.maximum(high, -low)
    zero = torch.full_like(high, middle)
    for shrink in shrinks:
        yield Scales(storable(sign * largest * (shrink / middle)), zero)


def round_to(rows: Any, grid: Scales, top: int) -> Any:
    """Return the integers nearest to weights, float32."""
    return (rows / grid.scale + grid.zero).round_().clamp_(0, top)


def best(rows: Any, cost: Callable[[Any], Any], options: CalibratedOptions) -> Scales:
    """Choose a grid for each output.

    Args:
        rows: Weights, float32 [inputs of the group, out_features].
        cost: Gives what errors like `rows` cost each output, [out_features].
        options: Say which are tried.
    """
    import torch

    found, least = None, None
    for grid in candidates(rows, options):
        if found is None and not options.clip_search:
            return grid
        error = (round_to(rows, grid, options.top) - grid.zero).mul_(grid.scale).sub_(rows)
        loss = cost(error)
        if found is None or least is None:
            found, least = grid, loss
            continue
        better = loss < least
        least = torch.where(better, loss, least)
        found = Scales(*(torch.where(better, new, old) for new, old in zip(grid, found, strict=True)))
    assert found
    return found
