"""What calibration leaves of a layer's inputs: the Gram matrix, their magnitudes, and some of them as they are."""

from typing import Any

PANEL = 192
"""Rows of the Gram matrix that are added up at a time: what lies below the diagonal is not computed."""

KEPT = 512
"""Tokens at most whose inputs are kept, spread over all."""


class Statistics:
    """Sums over the inputs of linear layers; to be used as a hook before the forward of one of them.

    The sums are float32: of bfloat16 ones the Gram matrix would not be positive definite.
    """

    def __init__(self) -> None:
        self._gram: Any = None
        self._magnitude: Any = None
        self._peak: Any = None
        self._kept: Any = None
        self._step = 1  # of so many tokens one is kept
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
            self._peak = torch.zeros(n, device=x.device)
            self._kept = x[:0]
        for first in range(0, n, PANEL):
            last = min(first + PANEL, n)
            self._gram[first:last, first:].addmm_(x[:, first:last].T, x[:, first:])
        size = x.abs()
        self._magnitude += size.sum(0)
        self._peak = torch.maximum(self._peak, size.amax(0))
        self._kept = torch.cat([self._kept, x[-self._count % self._step :: self._step]])
        self._count += len(x)
        while len(self._kept) > KEPT:
            self._kept, self._step = self._kept[::2].clone(), 2 * self._step

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

    @property
    def peak(self) -> Any:
        """The largest |x| of all tokens, float32 [in_features]."""
        return self._peak

    @property
    def kept(self) -> Any:
        """Some of the inputs, float32 [tokens, in_features]."""
        return self._kept
