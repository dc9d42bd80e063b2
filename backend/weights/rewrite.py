"""Writing a model in another format tensor by tensor, piece by piece: a few megabytes at a time, whatever its size.

A plan says, from the headers alone, which file holds which bytes. The pieces of a tensor are read, computed and written
by a few threads, each of which spends its time outside of Python.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from backend.errors import SpecError
from backend.models.config import is_tied
from backend.models.facts import BITS, Tensor, input_embeddings, output_head
from backend.models.families import TRANSPOSED
from backend.progress import Report
from backend.stage import Stage
from backend.weights.checkpoint import Weights
from backend.weights.floats import FLOATS, SAFETENSORS, Bytes, cast, is_finite, transposed
from backend.weights.output import Output
from backend.weights.writer import INDEX, MAX_SHARD_SIZE, Layout, Slot, Writer, index, lay_out

PIECE = 1 << 20  # elements that a thread has in hand: they fit its cache

THREADS = 8
"""Threads at the most: more would wait for memory, and each takes some megabytes."""

TENSOR_BYTES, SLOT_BYTES = 1000, 1200
"""Of Python's objects for each tensor that is read and each that is written, measured with 20,000 of them."""


@dataclass(frozen=True)
class View:
    """A tensor as a format sees it.

    Attributes:
        tensor: As it lies in the checkpoint.
        dtype: The type that its elements are cast to, as safetensors names it.
        turned: Whether it is transposed first.
    """

    tensor: Tensor
    dtype: str
    turned: bool

    @property
    def name(self) -> str:
        """Its name."""
        return self.tensor.name

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return self.tensor.elements

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; of a weight [out_features, in_features]."""
        return self.tensor.shape[::-1] if self.turned else self.tensor.shape


@dataclass(frozen=True)
class Source(View):
    """A view whose elements can be read.

    Attributes:
        weights: What it is read from.
        tell: Told the bytes of each piece that is done; several threads do.
    """

    weights: Weights
    tell: Callable[[int], None]

    def each(self, work: Callable[[int, Bytes], None], multiple: int = 1) -> None:
        """Do `work` on the first element and the bytes of each piece, in no order, in several threads at once.

        Args:
            work: Writes what the piece becomes.
            multiple: Every piece but the last has a multiple of so many elements.

        Raises:
            SpecError: The tensor holds numbers that are not finite.
        """
        step = max(PIECE // multiple, 1) * multiple
        read = self._whole() if self.turned else lambda first, last: self.weights.read(self.tensor, first, last)

        def piece(first: int) -> None:
            raw = read(first, min(first + step, self.elements))
            if not is_finite(raw, self.tensor.dtype):
                raise SpecError(
                    f"'{self.name}' holds numbers that are not finite: the model is damaged, choose another."
                )
            work(first, cast(raw, self.tensor.dtype, self.dtype))
            self.tell(len(raw))

        for _ in _pool().map(piece, range(0, self.elements, step)):
            pass

    def _whole(self) -> Callable[[int, int], Bytes]:
        """Transpose the whole tensor; models with such are small: their largest layer has some tens of megabytes."""
        turned = transposed(self.weights.read(self.tensor, 0, self.elements), self.tensor.shape)
        width = len(turned) // max(self.elements, 1)
        return lambda first, last: turned[first * width : last * width]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), "weights")


def threads() -> int:
    """Give the number of threads that read, compute and write."""
    return min(len(os.sched_getaffinity(0)), THREADS)


def _in_hand(view: View, form: "Form | Plain") -> int:
    """Give the bytes of what is in memory of a tensor at a time."""
    width, needed = view.tensor.bytes / max(view.elements, 1), form.memory(view)
    copies = 0 if view.dtype == view.tensor.dtype else 4 * (view.tensor.dtype != "F32") + BITS[view.dtype] // 8
    pieces = min(threads() * PIECE, view.elements) * (width + copies + needed.element)
    return int(pieces) + needed.kept + 2 * view.tensor.bytes * view.turned


class Memory(NamedTuple):
    """What writing a tensor takes beside the pieces that are read and cast, in bytes."""

    element: float  # for each element of a piece
    kept: int  # until the tensor is done


class Form(Protocol):
    """What a method makes of a tensor, as far as headers tell."""

    def skips(self, tensor: Tensor) -> bool:
        """Whether a tensor stays as it is."""

    def slots(self, view: View) -> list[Slot]:
        """Give what a tensor becomes."""

    def memory(self, view: View) -> Memory:
        """Say what writing a tensor takes beside the pieces that are read."""


class Format(Form, Protocol):
    """How a method writes a tensor that it sees alone."""

    def write(self, source: Source, writer: Writer) -> None:
        """Write what a tensor becomes."""


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
        """Give the tensor itself."""
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

    layout: Layout
    work: list[tuple[View, Form | Plain]]


class Plan(NamedTuple):
    """What a model becomes, known from its headers alone."""

    parts: tuple[Part, ...]
    plain: Plain
    parameters: int

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
        left = any(view.tensor.is_expert for view, form in work if form is self.plain)
        return changed / self.parameters if changed and left else None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What whoever takes the result for smaller than it is must know."""
        if self.share is None:
            return ()
        return (
            f"The experts of this mixture are not quantized: {self.share:.1%} of its parameters are, all others stay as"
            " they are.",
        )

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
        return sum(len(part.layout.names) for part in self.parts)

    @property
    def layouts(self) -> list[Layout]:
        """The layouts of all files with weights."""
        return [part.layout for part in self.parts]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of every file, the index included."""
        sizes = {layout.file: layout.size for layout in self.layouts}
        content = index(self.layouts, self.parameters)
        return sizes | ({INDEX: len(content)} if content else {})


class PlannedOptions(Stage):
    """What every method can be told; a method adds form(), config() and its own."""

    stage: Literal["quantize"] = "quantize"
    max_shard_size: int = Field(
        MAX_SHARD_SIZE,
        ge=1,
        description="Bytes of weights in one file at the most; a larger model is split into shards.",
        json_schema_extra={"advanced": True},
    )

    @property
    def target(self) -> str | None:
        """Torch's name of the type of all tensors that the method leaves as they are; None: the config's."""
        return None

    def form(self) -> Form | None:
        """Give what becomes of each tensor that it does not skip; None: all stay as they are."""
        return None

    def config(self) -> dict[str, Any]:
        """Give what changes in config.json; None removes a key."""
        return {}

    def plan(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Plan:
        """Say which file will hold which bytes.

        Args:
            tensors: Of the model, in the order in which they are read.
            config: What its config.json says.
        """
        target = SAFETENSORS[self.target or loaded_dtype(config, tensors)]
        form, turned, plain = self.form(), config.get("model_type") in TRANSPOSED, Plain()
        work: list[tuple[View, Form | Plain]] = []
        for tensor in tensors:
            f = plain if form is None or form.skips(tensor) else form
            dtype = target if tensor.dtype in FLOATS else tensor.dtype
            work.append((View(tensor, dtype, turned and f is not plain), f))
        slots = [f.slots(view) for view, f in work]
        layouts = lay_out(slots, self.max_shard_size)
        place = {name: layout.file for layout in layouts for name in layout.names}
        parts = {layout.file: Part(layout, []) for layout in layouts}
        for pair, made in zip(work, slots, strict=True):
            parts[place[made[0].name]].work.append(pair)
        return Plan(tuple(parts.values()), plain, sum(view.elements for view, _ in work))


class StreamOptions(PlannedOptions):
    """Options of a method that sees each tensor alone, piece by piece."""

    def form(self) -> Format | None:
        """Give what becomes of each tensor that it does not skip; None: all stay as they are."""
        return None


def stream(weights: Weights, output: Output, options: StreamOptions, report: Report) -> None:
    """Write a model's weights and config in another format, shard by shard; shards that are there already are left.

    Args:
        weights: The model's.
        output: Where they go.
        options: Say what becomes of them.
        report: Told the bytes read.

    Raises:
        SpecError: A tensor holds numbers that are not finite, or lies beyond the end of its file.
    """
    planned = options.plan(weights.tensors, weights.config)
    output.plan(_description(weights, planned))
    total = sum(view.tensor.bytes for part in planned.parts for view, _ in part.work)
    done, lock = 0, Lock()

    def tell(n: int) -> None:
        nonlocal done
        with lock:
            done += n
            report.progress("writing weights", done, total, "bytes")

    changed, plain = options.form(), planned.plain
    for part in planned.parts:
        writer = None if output.has(part.layout.file) else Writer(output, part.layout)
        for view, form in part.work:
            if writer:
                written = plain if form is plain or changed is None else changed
                written.write(Source(view.tensor, view.dtype, view.turned, weights, tell), writer)
            else:
                tell(view.tensor.bytes)
            weights.release(view.tensor)
        if writer:
            writer.close()
    content = index(planned.layouts, planned.parameters, sum(output.finished.values()))
    if content:
        (output.folder / INDEX).write_bytes(content)
    (output.folder / "config.json").write_bytes(config_json(weights.config, weights.tensors, options.config()))
    planned.warn(report)


def config_json(config: Mapping[str, Any], tensors: Sequence[Tensor], changes: Mapping[str, Any]) -> bytes:
    """Return a config.json with some of its keys changed.

    An output head that lies in the weights is said to be a tensor of its own: readers other than transformers would
    take the input embeddings in its place. The type is said too: readers would take that of the first scales.

    Args:
        config: Of the model that the result is made from.
        tensors: Of that model.
        changes: Values by key; None removes a key.
    """
    if is_tied(config) and input_embeddings(tensors) and output_head(tensors):
        changes = {**changes, "tie_word_embeddings": False}
    if _named_dtype(config) is None:
        changes = {"dtype": loaded_dtype(config, tensors), "torch_dtype": None, **changes}
    merged = {k: v for k, v in {**config, **changes}.items() if v is not None or k not in changes}
    return (json.dumps(merged, indent=2) + "\n").encode()


def _description(weights: Weights, planned: Plan) -> str:
    """Give a hash that differs where what is written would."""
    text = repr((weights.identity, planned.files, [part.work for part in planned.parts]))
    return hashlib.sha256(text.encode()).hexdigest()


def _named_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the type that a config names, if models are computed in it."""
    named = config.get("dtype") or config.get("torch_dtype")
    return named if isinstance(named, str) and named in SAFETENSORS else None


def loaded_dtype(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """Give the type that transformers loads a model in: the config's, else that of its first tensor."""
    if (named := _named_dtype(config)) is not None:
        return named
    first = next((t.dtype for t in tensors if t.dtype in FLOATS), "F32")
    return next((name for name, short in SAFETENSORS.items() if short == first), "float32")
