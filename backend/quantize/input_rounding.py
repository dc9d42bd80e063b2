"""Input rounding: what engines make of a layer's inputs while they compute, where these are rounded as its weights are.

Calibration and measuring take it from here. Arithmetic: vLLM's kernels `scaled_int8_quant`, `scaled_fp8_quant`,
`per_token_group_quant_fp8` and `scaled_fp4_quant`, in float32. All functions here take and return inputs as float32
[tokens, in_features].
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from backend.quantize.calibrated.numbers import HALVES, LARGEST, Halves, nearest_floats
from backend.quantize.compressed_tensors import Arguments

Rounds = Callable[[Any], Any]

_Numbers = tuple[float, Rounds]
"""The largest number, and what returns the nearest ones and may overwrite what it is given."""

BLOCK = 16
"""Inputs that share a scale where they become floats of 4 bits."""

SCALES: Mapping[str, tuple[str, ...]] = {
    "tensor": ("input_scale", "activation_scale", "qscale_act"),
    "tensor_group": ("input_global_scale",),
}
"""By the strategy, what the scale of a layer's inputs is called that lies beside its weight; others are found anew."""

_TINY = 1e-10
"""The smallest magnitude that a scale is found for."""

_EMPTY = 0.125
"""The scale of a block whose own is too small for F8_E4M3: all of it becomes 0."""


def rounding(said: Arguments, scale: float | None = None) -> Rounds | None:
    """Return what rounds the inputs of a layer; None where it is not known here, or a scale is missing.

    Args:
        said: How, as `input_activations` of compressed-tensors says it.
        scale: Of all inputs, where one is stored.
    """
    size, symmetric = said.get("group_size"), said.get("symmetric", True) is True
    numbers = f"{said.get('type', 'int')}{said.get('num_bits', 8)}"
    known = (numbers, said.get("strategy") or "tensor", said.get("dynamic", False))
    if known == ("float4", "tensor_group", "local") and size == BLOCK and scale:
        return partial(to_floats, unit=scale)
    if numbers not in _EIGHT_BITS or not symmetric or said.get("scale_dtype"):
        return None
    match known[1:]:
        case ("token", True):
            return partial(_to_own_scales, numbers=_EIGHT_BITS[numbers])
        case ("group", True) if size and size > 0:
            return partial(_to_own_scales, numbers=_EIGHT_BITS[numbers], size=size)
        case ("tensor", False) if scale:
            return partial(_to_scale, numbers=_EIGHT_BITS[numbers], scale=scale)
    return None


def to_integers(x: Any) -> Any:
    """Return inputs rounded to integers of 8 bits with one scale a token, which its largest input decides."""
    return _to_own_scales(x, _INTEGERS)


def to_floats(x: Any, unit: float | None = None) -> Any:
    """Return inputs rounded to floats of the type F4 with scales in F8_E4M3.

    Args:
        x: The inputs.
        unit: By what scales are multiplied before they are rounded; None: what brings the largest of all highest.
    """
    import torch
    from torch.nn.functional import max_pool1d

    tops = max_pool1d(x.abs(), BLOCK)[..., None]  # three times as fast as amax() of so few
    unit = unit or (LARGEST * HALVES / 2 / tops.max().clamp(min=_TINY)).item()
    scale = _nearest_floats(tops.div_(HALVES / 2).mul_(unit))
    scale = torch.where(scale == 0, _EMPTY, scale).div_(2 * unit)
    return Halves().nearest(x.unflatten(1, (-1, BLOCK)) / scale, 0.0).mul_(scale).flatten(1)


def _to_own_scales(x: Any, numbers: _Numbers, size: int | None = None) -> Any:
    """Return inputs rounded with a scale for each token, or for so many of its inputs, which the largest decides."""
    parts = x.unflatten(1, (-1, size or x.shape[1]))
    scale = parts.abs().amax(2, keepdim=True).clamp_(min=_TINY).div_(numbers[0])
    return _to_scale(parts, numbers, scale).flatten(1)


def _to_scale(x: Any, numbers: _Numbers, scale: Any) -> Any:
    """Return inputs rounded with a scale."""
    return numbers[1](x / scale).mul_(scale)


def _nearest_integers(x: Any) -> Any:
    return x.round_().clamp_(-128, 127)


def _nearest_floats(x: Any) -> Any:
    return nearest_floats(x, 3, 2.0**-6, LARGEST)


_INTEGERS: _Numbers = (127.0, _nearest_integers)

_EIGHT_BITS: Mapping[str, _Numbers] = {"int8": _INTEGERS, "float8": (LARGEST, _nearest_floats)}
"""By type and bits, as compressed-tensors names them."""
