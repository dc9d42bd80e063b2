"""Grids: the scale and zero of each group of weights, found by trying some and keeping what loses least.

Weights that were trained for a grid lie on it already, as Gemma's "qat-q4_0-unquantized" do: it is recovered.
Weights lie as [inputs, out_features] here: what is done to one input after the other is then done to whole rows.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from backend.quantize.calibrated.options import CalibratedOptions

SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a group's range that are tried."""

NEAR = 0.2
"""Steps of a grid by which weights may miss it that lie on it: bfloat16 leaves 0.03 of 16 levels, and error feedback
moves those that are rounded later. All 32 weights of a group that was trained otherwise are as near once in 10¹² times.
"""

LEVELS = 16
"""Of a grid that is recovered, at most: of finer ones bfloat16 leaves too little to tell."""

SAMPLE = 16
"""Outputs that are looked at first: where none of them lies on a grid, the others do not either."""

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
    """Yield grids for a group, the widest first, or the one that its weights lie on.

    Args:
        rows: Weights, float32 [inputs of the group, out_features].
        options: Bits, symmetry, and whether narrower grids are wanted.
    """
    high, low = rows.amax(0).clamp(min=0), rows.amin(0).clamp(max=0)
    shrinks = SHRINK if options.clip_search else SHRINK[:1]
    tried = (_symmetric if options.symmetric else _between)(high, low, shrinks, options)
    yield _lain_on(rows, next(tried), options)
    yield from tried


def _lain_on(rows: Any, widest: Scales, options: CalibratedOptions) -> Scales:
    """Return for each output the grid that its weights lie on with as many steps to one side as there are, or to both.

    Args:
        rows: As candidates() takes them.
        widest: The grid of outputs whose weights lie on none.
        options: Bits and symmetry.
    """
    import torch

    middle, found = (options.top + 1) // 2, widest
    for steps in (middle, middle - 1) if options.top < LEVELS else ():
        if steps and _misses(rows[:, :SAMPLE], steps).amin() <= NEAR:
            high, low = rows.amax(0), rows.amin(0)
            above, largest = high > -low, torch.maximum(high, -low)
            sign = torch.where(above, -1.0, 1.0) if options.symmetric else 1.0
            zero = torch.full_like(high, middle) - (0.0 if options.symmetric else above.float())
            lies = _misses(rows, steps) <= NEAR
            mine = Scales(storable(sign * largest / steps), zero)
            found = Scales(*(torch.where(lies, new, old) for new, old in zip(mine, found, strict=True)))
    return found


def _misses(rows: Any, steps: int) -> Any:
    """Return by how many steps the weights of each output miss a grid whose outermost is the largest of them."""
    import torch

    places = rows * (steps / rows.abs().amax(0))
    return torch.where(rows.abs().amax(0) > 0, (places - places.round()).abs().amax(0), 1.0)


def _between(high: Any, low: Any, shrinks: tuple[float, ...], options: CalibratedOptions) -> Iterator[Scales]:
    """Yield grids from the lowest weight to the highest."""
    for shrink in shrinks:
        scale = storable((high - low) * (shrink / options.top))
        yield Scales(scale, (-low * shrink / scale).round().clamp(options.written.LOWEST, options.top))


def _symmetric(high: Any, low: Any, shrinks: tuple[float, ...], options: CalibratedOptions) -> Iterator[Scales]:
    """Yield grids with the zero in the middle; one more step lies below it, which a negative scale puts above."""
    import torch

    middle = (options.top + 1) // 2
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
