"""Plan: which file will hold which bytes, known from the headers alone before the first is written."""

import re
from collections import Counter
from typing import NamedTuple, Protocol

import numpy as np

from backend.progress import Report
from backend.weights.anatomy import is_expert
from backend.weights.floats import Bytes, is_finite
from backend.weights.tensor import BITS, Tensor
from backend.weights.view import Source, View, in_hand, threads
from backend.weights.writer import INDEX, Shard, Slot, Writer, index

TENSOR_BYTES, SLOT_BYTES = 1000, 1200
"""Of Python's objects for each tensor that is read and each that is written, measured with 20,000 of them."""


def _in_hand(view: View, form: "Form | Plain") -> int:
    """Return the bytes of what is in memory of a tensor at a time."""
    width, needed = view.tensor.bytes / max(view.elements, 1), form.memory(view)
    copies = 0 if view.dtype == view.tensor.dtype else 4 * (view.tensor.dtype != "F32") + BITS[view.dtype] // 8
    pieces = min(threads() * in_hand(needed.multiple), view.elements) * (width + copies + needed.element)
    return int(pieces) + needed.kept + 2 * view.tensor.bytes * view.turned


class Memory(NamedTuple):
    """What writing a tensor takes beside the pieces that are read and cast, in bytes."""

    element: float  # for each element of a piece
    kept: int  # until the tensor is done
    multiple: int = 1  # of elements in a piece


class Form(Protocol):
    """What a method makes of a tensor, as far as headers tell."""

    def skips(self, tensor: Tensor) -> bool:
        """Return whether a tensor stays as it is."""

    def slots(self, view: View) -> list[Slot]:
        """Return what a tensor becomes."""

    def memory(self, view: View) -> Memory:
        """Say what writing a tensor takes beside the pieces that are read."""


class Plain:
    """Writes a tensor as it is, in the model's type.

    Attributes:
        infinite: How many numbers of each tensor were too large for float16.
    """

    def __init__(self) -> None:
        self.infinite: Counter[str] = Counter()

    def __repr__(self) -> str:
        return type(self).__name__  # part of what a plan is known by

    def slots(self, view: View) -> list[Slot]:
        """Return the tensor itself."""
        return [Slot(view.name, view.dtype, view.shape)]

    def write(self, source: Source, writer: Writer) -> None:
        """Write the tensor piece by piece."""
        bits, narrowed = BITS[source.dtype], source.dtype == "F16" != source.tensor.dtype

        def piece(first: int, raw: Bytes) -> None:
            if narrowed and not is_finite(raw, "F16"):
                self.infinite[source.name] += int(np.isinf(raw.view(np.float16)).sum())
            writer.write(source.name, raw, first * bits // 8)

        source.each(piece, 2)  # an element can take half a byte

    def memory(self, view: View) -> Memory:
        """A piece is written as it is."""
        return Memory(0, 0)

    def warn(self, report: Report) -> None:
        """Say what float16 could not hold."""
        if self.infinite:
            report.warn(
                f"{self.infinite.total()} weights exceed {np.finfo(np.float16).max:.0f}, the largest float16, and"
                f" became infinite, the first in '{next(iter(self.infinite))}': choose bfloat16."
            )


class Part(NamedTuple):
    """One file of a plan: where its bytes go, and what becomes of which tensors."""

    shard: Shard
    work: list[tuple[View, Form | Plain]]


class Plan(NamedTuple):
    """What a model becomes, known from its headers alone.

    Attributes:
        parts: Its files.
        plain: Writes what stays as it is.
        parameters: Of the model.
        odd: Linear layers that stay because their sizes do not fit the format.
    """

    parts: tuple[Part, ...]
    plain: Plain
    parameters: int
    odd: tuple[Tensor, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes that writing takes at its peak, over those of the process that has not begun."""
        hands = max((_in_hand(view, form) for part in self.parts for view, form in part.work), default=0)
        return hands + TENSOR_BYTES * self.tensors + SLOT_BYTES * self.slots

    @property
    def share(self) -> float | None:
        """Share of a mixture's parameters that change, where its experts stay as they are; else None."""
        work = [pair for part in self.parts for pair in part.work]
        changed = sum(view.elements for view, form in work if form is not self.plain)
        left = any(is_expert(view.tensor) for view, form in work if form is self.plain)
        return changed / self.parameters if changed and left else None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What whoever takes the result for smaller than it is must know."""
        found = []
        if self.share is not None:
            found.append(
                f"The experts of this mixture are not quantized: {self.share:.1%} of its parameters are. Readers of"
                f" this format hold experts in 16 bit: the weights have {sum(self.files.values()) / 1e9:.3g} GB."
                " Methods gptq, awq, w4a16 and fp8 quantize experts too."
            )
        if self.odd:
            kinds = {re.sub(r".*\.\d+\.", "", t.name.removesuffix(".weight")): t for t in self.odd}
            named = ", ".join(f"'{name}' {'×'.join(map(str, t.shape))}" for name, t in sorted(kinds.items()))
            found.append(f"{len(self.odd)} layers stay as they are, whose sizes do not fit the groups: {named}.")
        return tuple(found)

    def warn(self, report: Report) -> None:
        """Say what float16 could not hold, and what is doubtful."""
        self.plain.warn(report)
        for doubt in self.doubts:
            report.warn(doubt)

    @property
    def tensors(self) -> int:
        """Number of the tensors that are read."""
        return sum(len(part.work) for part in self.parts)

    @property
    def slots(self) -> int:
        """Number of the tensors that are written."""
        return sum(len(part.shard.names) for part in self.parts)

    @property
    def shards(self) -> list[Shard]:
        """All files with weights."""
        return [part.shard for part in self.parts]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of every file, the index included."""
        sizes = {shard.file: shard.size for shard in self.shards}
        content = index(self.shards, self.parameters)
        return sizes | ({INDEX: len(content)} if content else {})
