"""What calibration leaves of a layer's inputs: the Gram matrix and the mean of their magnitudes."""

from typing import Any

PANEL = 192
"""Rows of the Gram matrix that are added up at a time: what lies below the diagonal is not computed."""


class Statistics:
    """Sums over the inputs of linear layers; to be used as a hook before the forward of one of them.

    The sums are float32: of bfloat16 ones the Gram matrix would not be positive definite.
    """

    def __init__(self) -> None:
        self._gram: Any = None
        self._magnitude: Any = None
        self._count = 0

    def __call__(self, module: Any, args: tuple[Any, ...]) -> None:
        """Add the inputs of a forward, [..., in_features]."""
        self.add(args[0].reshape(-1, args[0].shape[-1]))

    def add(self, x: Any) -> None:
        """Add inputs, [tokens, in_features]."""
        import torch

        x = x.float()
        n = x.shape[1]
        if self._gram is None:
            self._gram = torch.zeros(n, n, device=x.device)
            self._magnitude = torch.zeros(n, device=x.device)
        for first in range(0, n, PANEL):
            last = min(first + PANEL, n)
            self._gram[first:last, first:].addmm_(x[:, first:last].T, x[:, first:])
        self._magnitude += x.abs().sum(0)
        self._count += len(x)

    @property
    def heard(self) -> bool:
        """Whether there were any."""
        return self._count > 0

    def take_gram(self) -> Any:
        """Return the mean of x xᵀ over all tokens, float32 [in_features, in_features].

        It is made of the sums, which are gone then: of a wide layer either has gigabytes.
        """
        gram = self._gram.triu_().div_(self._count)
        self._gram = None
        gram += gram.triu(1).T
        return gram

    @property
    def magnitude(self) -> Any:
        """The mean of |x| over all tokens, float32 [in_features]."""
        return self._magnitude / self._count
