"""Weights as torch reads them: tensor by tensor, and those that ship in 8 or 4 bits decoded on their way."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import SpecError
from backend.weights.checkpoint import Checkpoint, Weights
from backend.weights.decoded import decoded
from backend.weights.tensor import DTYPES, Tensor


def read(weights: Weights, tensor: Tensor) -> Any:
    """Read a whole tensor as one of torch.

    Raises:
        SpecError: It holds numbers that are not finite.
    """
    import torch

    raw = weights.read(tensor, 0, tensor.elements)
    values = torch.from_numpy(np.asarray(raw)).view(getattr(torch, DTYPES[tensor.dtype])).reshape(tensor.shape)
    if not torch.isfinite(values).all():
        raise SpecError(f"'{tensor.name}' holds numbers that are not finite: the model is damaged, choose another.")
    return values


@contextmanager
def opened(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Open an admitted folder: its config, and its tensors as `from_pretrained` takes them for a state_dict; decoded.

    Args:
        folder: With safetensors weights.
    """
    with Checkpoint.of(folder) as stored:
        weights = decoded(stored)
        yield weights.config, {tensor.name: _Later(weights, tensor) for tensor in weights.tensors}


class _Later:
    """A tensor that is read when transformers takes all of it, as it does with those of files."""

    def __init__(self, weights: Weights, tensor: Tensor) -> None:
        self._weights, self._tensor = weights, tensor

    def __getitem__(self, every: Any) -> Any:
        return read(self._weights, self._tensor)
