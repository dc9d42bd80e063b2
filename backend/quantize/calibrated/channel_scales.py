"""Scales of input channels: channels that are used strongly get a finer grid (AWQ, arXiv 2306.00978, §3.2).

AWQ runs the block for each exponent that it tries; the layer's own error tr(E H E') with the Gram matrix H needs none.
Where inputs are rounded too, the same scales make their channels more alike (SmoothQuant, arXiv 2211.10438): what that
rounding loses on some tokens is added.
"""

from collections.abc import Callable
from typing import Any

from backend.quantize.calibrated.architectures import Group
from backend.quantize.calibrated.grids import candidates, round_to
from backend.quantize.calibrated.options import CalibratedOptions

EXPONENTS = 20
"""How many are tried from 0, which leaves everything as it is, to below 1."""

State = dict[str, Any]
"""A block's tensors by their names within it, float32; weights of linear layers as [out_features, in_features]."""


def search(weight: Any, gram: Any, size: Any, options: CalibratedOptions, tokens: Any = None) -> Any:
    """Find the scale of each input channel.

    Args:
        weight: Of all layers that share the input, float32 [out_features, in_features].
        gram: Of the input, float32 [in_features, in_features].
        size: How strongly each channel is used, float32 [in_features].
        options: Say how it is rounded.
        tokens: Some inputs, float32 [tokens, in_features]; needed where they are rounded too.

    Returns:
        float32 [in_features].
    """
    gram = gram.bfloat16()  # to compare errors it does
    best, least = None, float("inf")
    for step in range(EXPONENTS):
        scale = size.pow(step / EXPONENTS).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        scaled = weight * scale
        error = weight - _nearest(scaled, options) / scale
        loss = ((error.bfloat16() @ gram).float() * error).sum().item()
        if options.rounds_inputs is not None:
            loss += _lost(tokens / scale, scaled, options.rounds_inputs)
        if loss < least:
            best, least = scale, loss
    return best


def _lost(tokens: Any, weight: Any, rounds: Callable[[Any], Any]) -> float:
    """Return by what the outputs of a token differ where its inputs are rounded, squared and summed, in the mean."""
    error = (rounds(tokens) - tokens).bfloat16() @ weight.bfloat16().T
    return float(error.float().square().sum()) / len(tokens)


def fold_scale(state: State, group: Group, scale: Any, dtype: Any) -> Any:
    """Multiply a group's weights by a scale and divide what comes before by it; the block computes the same.

    Args:
        state: The block's tensors, changed in place.
        group: With a fold.
        scale: float32 [in_features].
        dtype: Torch's type in which a norm's weight is kept: the scale is what its rounding makes of it.

    Returns:
        The scale that was applied.
    """
    import torch

    fold = group.fold
    assert fold
    weight, bias = f"{fold.into}.weight", f"{fold.into}.bias"
    if state[weight].dim() == 1:
        one = int(fold.plus_one)
        before = state[weight] + one
        state[weight] = (before / scale - one).to(dtype).to(scale.dtype)
        after = state[weight] + one
        divisor = scale = torch.where(after == 0, scale, before / after)
    else:
        divisor = scale.new_ones(len(state[weight]))
        divisor[slice(None) if fold.rows is None else torch.from_numpy(fold.rows).to(scale.device)] = scale
        state[weight] = state[weight] / divisor[:, None]
    if bias in state:
        state[bias] = state[bias] / divisor
    for name in group.linears:
        state[f"{name}.weight"] = state[f"{name}.weight"] * scale
    return scale


def _nearest(weight: Any, options: CalibratedOptions) -> Any:
    """Round weights to the widest grid of each group."""
    outputs, inputs = weight.shape
    unit = options.numbers.unit(weight)
    rows = (weight * unit).reshape(outputs, -1, options.group(inputs)).permute(2, 0, 1)
    grid = next(candidates(rows, options))
    rounded = (round_to(rows, grid, options.numbers) - grid.zero) * (grid.scale / unit)
    return rounded.permute(1, 2, 0).reshape(outputs, inputs)
