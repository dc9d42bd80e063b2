"""Input rounding: what engines make of a layer's inputs while they compute, where these are rounded as its weights are.

Both functions take and return inputs as float32 [tokens, in_features]; scales are found anew for each token.
"""

from typing import Any, Literal

from pydantic import Field

from backend.quantize.calibrated.numbers import HALVES, LARGEST, Halves
from backend.quantize.calibrated.options import CalibratedOptions

BLOCK = 16
"""Inputs that share a scale where they become floats of 4 bits."""


class RoundedInputsOptions(CalibratedOptions):
    """What methods share whose inputs are rounded too: compressed-tensors alone has such, with zeros in the middle."""

    layout: Literal["compressed-tensors"] = Field(
        "compressed-tensors", description=CalibratedOptions.model_fields["layout"].description
    )

    @property
    def symmetric(self) -> bool:
        """Whether all zeros lie in the middle of the grid."""
        return True


def to_integers(x: Any) -> Any:
    """Return inputs rounded to integers of 8 bits with one scale a token, which its largest input decides."""
    scale = x.abs().amax(1, keepdim=True).clamp(min=1e-10) / 127
    return (x / scale).round_().mul_(scale)


def to_floats(x: Any) -> Any:
    """Return inputs rounded to floats of the type F4 with scales in F8_E4M3, which the largest of all has highest."""
    numbers, blocks = Halves(), x.unflatten(1, (-1, BLOCK))
    unit = (LARGEST * HALVES / 2 / x.abs().max().clamp(min=1e-10)).item()
    scale = numbers.storable(blocks.abs().amax(2, keepdim=True) * (unit / HALVES)) / unit
    return numbers.nearest(blocks / scale, 0.0).mul_(scale).flatten(1)
