"""Encoding: how weights of 8 or 4 bits lie in a checkpoint, whichever it is; what is known of one stands in its module.

Which tensors belong together is told from their names, types and shapes, so that headers alone say what a model is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.strict_json import quoted
from backend.weights.floats import Bytes
from backend.weights.tensor import Tensor

LONGEST_ROW = 1 << 23
"""Elements that are decoded together at most: each piece of a longer row would take all of it."""

Read = Callable[[Tensor, int, int], Bytes]
"""Reads the elements from one to before another of a stored tensor."""


class Encoded(ABC):
    """A dense tensor and the stored ones that it is computed from.

    Attributes:
        tensor: What it is once it is decoded.
        parts: What is stored for it; it is best read where the first of them lies.
        row: Elements that are decoded together.
        element: Bytes that are in memory for each of them meanwhile, beside the result.
        kept: Bytes that stay in memory until release().
    """

    tensor: Tensor
    parts: tuple[Tensor, ...]
    row: int
    element: int
    kept: int = 0

    @abstractmethod
    def rows(self, read: Read, top: int, bottom: int) -> Bytes:
        """Return the rows from `top` to before `bottom`, in the type of the tensor.

        Raises:
            SpecError: What is stored contradicts itself.
        """

    @abstractmethod
    def release(self) -> None:
        """Drop what is kept: the tensor will not be read again."""


class Found(NamedTuple):
    """What a checkpoint holds, as an encoding reads it."""

    encoded: tuple[Encoded, ...]
    unused: tuple[Tensor, ...]  # tensors that only the kernels of the encoding read, such as scales of activations


class Encoding(NamedTuple):
    """A row of ENCODINGS.

    Attributes:
        words: Says what the weights are, as settings of config.json describe it; None where these are not read here.
        find: Finds them among tensors by name; takes the settings and the type that they are decoded to.
    """

    words: Callable[[Mapping[str, Any]], str | None]
    find: Callable[[Mapping[str, Tensor], Mapping[str, Any], str], Found]


def damaged(tensor: Tensor, what: str) -> SpecError:
    """Return the error for a tensor that does not fit those that belong to it."""
    return SpecError(f"{quoted(tensor.name)} {what}: the model is damaged, choose another.")


def sizes(shape: tuple[int, ...]) -> str:
    """Write a shape."""
    return " × ".join(map(str, shape)) or "one number"
