"""Numbers: which integers and which scales a grid may hold, as the searches need to know them."""

import math
from dataclasses import dataclass
from typing import Any

TINY = 2.0**-24  # the smallest float16 above 0

HALVES = 12
"""The largest number of the type F4 (E2M1 of OCP MX, 1.0) in halves, of which all of its numbers are multiples."""

LARGEST, SMALLEST = 448.0, 2.0**-9
"""Numbers of the type F8_E4M3, in which scales of F4 are kept."""

_EXPONENT = 0x7F800000
"""The bits of a float32 that are its exponent: alone they are the power of two that it begins with."""

HEADROOM = 1.5
"""By what a scale of F4 may grow beyond what its largest number asks for: that is rounded to 4 then instead of 6."""


def nearest_floats(x: Any, digits: int, normal: float, largest: float) -> Any:
    """Return the nearest floats of a small type, ties to even; `x` may be overwritten.

    Numbers of a float32 that are 2^23 times as large as those floats lie apart are whole multiples of that: to add such
    a number rounds. That takes a sixth of the time of torch's cast to F8_E4M3 and back on a CPU.

    Args:
        x: Float32.
        digits: Behind the leading one, in binary.
        normal: The smallest number with all digits: those below lie as far apart as those above.
        largest: The largest number, which takes the place of larger ones.
    """
    import torch

    powers = x.abs().clamp_(min=normal).view(torch.int32).bitwise_and_(_EXPONENT).view(torch.float32)
    large = powers.mul_(1.5 * 2.0 ** (23 - digits))
    return x.add_(large).sub_(large).clamp_(-largest, largest)


@dataclass(frozen=True)
class Numbers:
    """All integers from 0, and scales that a float16 holds.

    Attributes:
        top: The largest integer.
        lowest: The smallest zero.
        signed: Whether scales may be negative, which puts the side with one more step above zero.
        shrink: Shares of a group's range that are tried, the first alone where no grid is searched.
    """

    top: int
    lowest: int = 0
    signed: bool = True
    shrink: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)

    def nearest(self, steps: Any, zero: Any) -> Any:
        """Return the integers nearest to weights that are so many steps from zero; `steps` may be overwritten."""
        return steps.add_(zero).round_().clamp_(0, self.top)

    def storable(self, scale: Any) -> Any:
        """Return the nearest scales that both float16, which is stored, and bfloat16, which vLLM may use, hold."""
        import torch

        kept = scale.bfloat16().half().float()
        return torch.where(kept == 0, TINY, kept)

    def unit(self, weight: Any) -> float:
        """Return the power of two by which weights are multiplied, so that scales which suit them can be stored."""
        return 1.0


@dataclass(frozen=True)
class Halves(Numbers):
    """What floats of the type F4 are in halves, 12 of which lie on each side of zero, and scales of such halves.

    The scale of the floats, which is stored, is twice that of halves.
    """

    top: int = 2 * HALVES
    lowest: int = HALVES
    signed: bool = False
    shrink: tuple[float, ...] = (1.0, HEADROOM, 1.25, 0.95, 0.9, 0.85, 0.8)

    def nearest(self, steps: Any, zero: Any) -> Any:
        """Return the integers nearest to weights that are so many halves from zero; ties go where those of F4 do."""
        return nearest_floats(steps, 1, 2.0, HALVES).add_(zero)

    def storable(self, scale: Any) -> Any:
        """Return the nearest scales of halves of which F8_E4M3 holds twice as much."""
        import torch

        return (2 * scale).clamp(SMALLEST, LARGEST).to(torch.float8_e4m3fn).float() / 2

    def unit(self, weight: Any) -> float:
        """Return the power of two that brings the largest scale as high as it may be."""
        largest = weight.abs().max().item()
        return 2.0 ** math.floor(math.log2(LARGEST * HALVES / 2 / HEADROOM / largest)) if largest else 1.0
