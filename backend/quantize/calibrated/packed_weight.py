"""Packed weights that torch trains: integers stay, and scales are used as they are stored.

A layer computes with what every reader makes of its file: (q - zero) · scale, rounded once to the model's type. A scale
gets the gradient of the one that is stored for it (straight-through, arXiv 1308.3432).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils.parametrize import register_parametrization

from backend.quantize.layouts.layout import Grid


class PackedWeight(torch.nn.Module):
    """Stands for the weight of a linear layer; what is trained is by what share each of its scales changes.

    Args:
        grid: Of the layer.
        storable: Returns the nearest scales that can be stored.
        layer: Torch's module; its weight's type holds the integers and the scales exactly.
        turned: Whether it keeps its weight as [in_features, out_features].

    Attributes:
        change: float32 [out_features, groups].
    """

    def __init__(self, grid: Grid, storable: Callable[[Any], Any], layer: Any, turned: bool) -> None:
        super().__init__()
        self._storable, self._turned, self._dtype = storable, turned, layer.weight.dtype
        order = grid.g_idx.argsort(kind="stable")  # groups side by side
        moved = not np.array_equal(order, np.arange(len(order)))
        self._order = torch.from_numpy(order) if moved else slice(None)
        self._place = torch.from_numpy(order.argsort()) if moved else slice(None)
        steps = grid.q.astype(np.int16) - grid.zeros.astype(np.int16)[:, grid.g_idx]
        if abs(steps).max() <= np.iinfo(np.int8).max:
            steps = steps.astype(np.int8)
        device = layer.weight.device
        self._steps = torch.from_numpy(steps[:, order].reshape(*grid.scales.shape, -1)).to(device)
        self._scales = torch.from_numpy(grid.scales).to(device)
        register_parametrization(layer, "weight", self, unsafe=True)
        self.change = layer.parametrizations.weight.original0

    def forward(self, change: Any) -> Any:
        """Return the layer's weight."""
        return _Dequantize.apply(change, self)  # type: ignore[no-untyped-call]

    def right_inverse(self, weight: Any) -> tuple[Any]:
        """Return what is trained, as it is at first; in a tuple it may be of another type than the weight."""
        return (torch.zeros_like(self._scales),)

    def scales(self) -> Any:
        """Return the scales as they are stored, float32 [out_features, groups]."""
        return self._storable(self._scales * (1 + self.change.detach()))

    def weight(self) -> Any:
        """Return (q - zero) · scale."""
        weight = self._steps * self.scales().to(self._dtype)[:, :, None]
        found = weight.flatten(1)[:, self._place]
        return found.T if self._turned else found

    def gradient(self, weight: Any) -> Any:
        """Return the gradient of the change from that of the weight."""
        of_steps = (weight.T if self._turned else weight)[:, self._order].view_as(self._steps)
        return (of_steps * self._steps).sum(2, dtype=torch.float32) * self._scales


class _Dequantize(torch.autograd.Function):
    """The weight, with a gradient that is summed up by groups."""

    @staticmethod
    def forward(ctx: Any, change: Any, packed: PackedWeight) -> Any:
        """Return the weight."""
        ctx.packed = packed
        return packed.weight()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """Return the gradient of the change."""
        return ctx.packed.gradient(gradient), None
