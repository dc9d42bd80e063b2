"""Writing a model in another format tensor by tensor, piece by piece: a few megabytes at a time, whatever its size."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backend.errors import SpecError
from backend.models.facts import Tensor
from backend.models.loading import read_config
from backend.progress import Report
from backend.weights.checkpoint import Checkpoint
from backend.weights.floats import FLOATS, SAFETENSORS, cast, is_finite
from backend.weights.writer import Slot, Writer

PIECE = 1 << 21  # elements read at a time: 8 MB as float32

TRANSPOSED = ("gpt2", "gpt-sw3", "openai-gpt")
"""Model types that keep the weights of their linear layers as [in, out]; quantized ones are kept as [out, in]."""


class Source:
    """One tensor of a checkpoint as a format sees it: in the model's type, as [out, in].

    Args:
        checkpoint: Open.
        tensor: As it lies there.
        dtype: What its elements are cast to, as safetensors names it.
        turned: Whether it is transposed.
    """

    def __init__(self, checkpoint: Checkpoint, tensor: Tensor, dtype: str, turned: bool) -> None:
        self._checkpoint = checkpoint
        self._tensor = tensor
        self._turned: Any = None
        self.name = tensor.name
        self.dtype = dtype if tensor.dtype in FLOATS else tensor.dtype
        self.shape = tensor.shape[::-1] if turned else tensor.shape
        self.elements = tensor.elements
        self._is_turned = turned

    def pieces(self, multiple: int = 1) -> Iterator[tuple[int, Any]]:
        """Give the first element and the bytes of each piece, in order.

        Args:
            multiple: Every piece but the last has a multiple of so many elements.
        """
        step = max(PIECE // multiple, 1) * multiple
        for first in range(0, self.elements, step):
            last = min(first + step, self.elements)
            raw = self._read(first, last)
            if not is_finite(raw, self._tensor.dtype):
                raise SpecError(
                    f"'{self.name}' holds numbers that are not finite: the model is damaged, choose another."
                )
            yield first, cast(raw, self._tensor.dtype, self.dtype)

    def _read(self, first: int, last: int) -> Any:
        if not self._is_turned:
            return self._checkpoint.read(self._tensor, first, last)
        if self._turned is None:  # such models are small: their largest layer has some tens of megabytes
            whole = self._checkpoint.read(self._tensor, 0, self.elements)
            width = len(whole) // self.elements
            grid = whole.reshape(*self._tensor.shape, width)
            self._turned = np.ascontiguousarray(grid.transpose(1, 0, 2)).reshape(self.elements, width)
        return self._turned[first:last].reshape(-1)


class Format(Protocol):
    """How a method writes a tensor."""

    def skips(self, tensor: Tensor) -> bool:
        """Whether a tensor stays as it is."""

    def slots(self, source: Source) -> list[Slot]:
        """Give what a tensor becomes."""

    def write(self, source: Source, writer: Writer) -> None:
        """Write what a tensor becomes."""


class Plain:
    """Writes a tensor as it is, in the model's type."""

    def slots(self, source: Source) -> list[Slot]:
        """Give the tensor itself."""
        return [Slot(source.name, source.dtype, source.shape)]

    def write(self, source: Source, writer: Writer) -> None:
        """Write the tensor piece by piece."""
        at = 0
        for _, raw in source.pieces():
            self.look(source, raw)
            writer.write(source.name, raw, at)
            at += len(raw)

    def look(self, source: Source, raw: Any) -> None:
        """See each piece before it is written."""


def stream(source: Path, output: Path, form: Format | Plain, dtype: str | None, report: Report) -> None:
    """Write the weights of a model folder in another format.

    Args:
        source: Admitted: config.json and safetensors weights.
        output: An existing empty folder.
        form: What becomes of each tensor that it does not skip; with a Plain, every tensor stays what it is.
        dtype: torch's name of the type of all others; None: the one that config.json names, as transformers loads it.
        report: Told the bytes read.

    Raises:
        SpecError: A tensor holds numbers that are not finite, or lies beyond the end of its file.
    """
    config = read_config(source)
    turned = config.get("model_type") in TRANSPOSED
    with Checkpoint(source) as checkpoint:
        target = SAFETENSORS[dtype or _dtype(config, checkpoint.tensors)]
        kept = [t for t in checkpoint.tensors if not _tied_copy(t, config, checkpoint)]
        plain = form if isinstance(form, Plain) else Plain()
        forms = [plain if isinstance(form, Plain) or form.skips(t) else form for t in kept]
        sources = [Source(checkpoint, t, target, turned and f is not plain) for t, f in zip(kept, forms, strict=True)]
        writer = Writer(output, [f.slots(s) for f, s in zip(forms, sources, strict=True)])
        done, total = 0, sum(t.bytes for t in kept)
        for tensor, part, f in zip(kept, sources, forms, strict=True):
            f.write(part, writer)
            done += tensor.bytes
            report.progress("quantizing", done, total, "bytes")
        writer.close()


def write_config(source: Path, output: Path, changes: dict[str, Any]) -> None:
    """Copy config.json with some of its keys changed; None removes a key."""
    config = {k: v for k, v in (read_config(source) | changes).items() if v is not None or k not in changes}
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _dtype(config: dict[str, Any], tensors: list[Tensor]) -> str:
    """Give the type that transformers loads a model in: the config's, else that of its first tensor."""
    named = config.get("dtype") or config.get("torch_dtype")
    if named in SAFETENSORS:
        return str(named)
    first = next((t.dtype for t in tensors if t.dtype in FLOATS), "F32")
    return next((name for name, short in SAFETENSORS.items() if short == first), "float32")


def _tied_copy(tensor: Tensor, config: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether a tensor is the output head of a model that uses its input embeddings there."""
    tied = config.get("tie_word_embeddings") is True and tensor.name == "lm_head.weight"
    return tied and any(t.name.endswith("embed_tokens.weight") for t in checkpoint.tensors)
