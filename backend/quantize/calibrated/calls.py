"""Calls: what a block is called with beside its input (rotary embeddings, masks), as the model's own code makes it."""

import copy
from collections.abc import MutableMapping
from typing import Any

Shared = dict[tuple[int, int], Any]
"""What blocks hand on to later ones beside their outputs, for each batch of windows."""


class Heard(Exception):
    """All blocks have been called: what comes after them is not needed, and some models want tuples from them."""


class Calls:
    """Stands for a block while windows go through the model: notes what it is called with and gives its input on.

    Args:
        last: Whether it ends the forward.
        more: How many values a block gives beside its output.

    Attributes:
        hidden: The input that it was called with last, [1, length, …].
    """

    def __init__(self, last: bool, more: int = 0) -> None:
        self._last, self._more = last, tuple(_Handed(number) for number in range(more))
        self._leaves: list[Any] | None = None
        self._form: Any = None
        self._varying: dict[int, list[Any]] = {}  # by the leaf's number, what it is in each window
        self._windows = 0
        self._several = False  # inputs for each token, [inputs, windows, length, hidden_size], as of Gemma 3n
        self.hidden: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note what the block is called with.

        Returns:
            Its input; with it, what stands for the further values that it gives.
        """
        from torch.utils._pytree import tree_flatten

        given, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), args)
        self._several = given.dim() > 3 and len(given) > 1
        self.hidden = given.movedim(0, -2) if self._several else given
        leaves, self._form = tree_flatten((args, kwargs), is_leaf=_is_shared)
        if self._leaves is None:
            self._leaves = leaves
        self._note(leaves)
        self._windows += 1
        if self._last:
            raise Heard
        return (given, *self._more) if self._more else given

    def at(self, first: int, count: int, shared: Shared) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the block is called with for some windows, beside its input.

        Args:
            first: Number of the first window.
            count: Of windows.
            shared: What earlier blocks have handed on; is added to.
        """
        import torch
        from torch.utils._pytree import tree_unflatten

        assert self._leaves is not None
        leaves = list(self._leaves)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, _Handed):
                leaves[i] = shared[leaf.number, first]
            elif _is_shared(leaf):
                leaves[i] = shared.setdefault((id(leaf), first), copy.copy(leaf))
            elif i in self._varying:
                leaves[i] = torch.cat(self._varying[i][first : first + count])
        args, kwargs = tree_unflatten(leaves, self._form)
        return args, kwargs

    def hand_on(self, found: Any, first: int, shared: Shared) -> Any:
        """Return a block's output; what it gives beside that is kept for the next block.

        Args:
            found: What the block returns.
            first: Number of the first window.
            shared: Is added to.
        """
        output, *more = found if isinstance(found, tuple | list) else (found,)
        shared.update({(handed.number, first): value for handed, value in zip(self._more, more, strict=False)})
        return output.movedim(0, -2) if self._several else output

    def as_given(self, hidden: Any) -> Any:
        """Return the inputs of some windows, [windows, length, …], as a block is given them."""
        return hidden.movedim(-2, 0) if self._several else hidden

    def _note(self, leaves: list[Any]) -> None:
        """Keep what is not as it was in the first window."""
        import torch

        assert self._leaves is not None
        for i, (leaf, first) in enumerate(zip(leaves, self._leaves, strict=True)):
            if i in self._varying:
                self._varying[i].append(leaf)
            elif isinstance(leaf, torch.Tensor) and leaf is not first and not torch.equal(leaf, first):
                self._varying[i] = [first] * self._windows + [leaf]


class _Handed:
    """Stands for a value that a block gives to the next one beside its output."""

    def __init__(self, number: int) -> None:
        self.number = number


def _is_shared(leaf: Any) -> bool:
    """Return whether it is a mapping that blocks fill for later ones."""
    return isinstance(leaf, MutableMapping) and not leaf
