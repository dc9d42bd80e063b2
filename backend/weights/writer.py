"""Safetensors files written piece by piece, in any order, as shards with an index.

Where each tensor goes is known before the first byte is written, but for small ones whose size depends on the result:
these are kept and put at the end. Within a file wider types come first, as the format's own writer sorts them, so that
every tensor is aligned.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from backend.models.facts import BITS

MAX_SHARD_SIZE = 5_000_000_000  # bytes; transformers' default is "5GB"
ALIGN = 4096  # of the first tensor: its file's header can still grow a little


Data = bytes | NDArray[Any]


class Slot(NamedTuple):
    """A tensor to be written; an `open` one gets its size when it is given."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    open: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of its data; for an open one, the most it will have."""
        elements = 1
        for size in self.shape:
            elements *= size
        return elements * BITS[self.dtype] // 8


class Shard:
    """One file: write() puts bytes where they belong, close() adds what was open and the header."""

    def __init__(self, path: Path, slots: Sequence[Slot]) -> None:
        fixed = sorted((slot for slot in slots if not slot.open), key=lambda slot: (-BITS[slot.dtype], slot.name))
        self._open = {slot.name: slot for slot in slots if slot.open}
        self._tail: dict[str, bytes] = {}
        self._entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        for slot in fixed:
            self._enter(slot, slot.bytes)
        widest = len(json.dumps(self._entries)) + sum(len(name) + 120 for name in self._open)
        self._data = -(-(8 + widest) // ALIGN) * ALIGN
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def write(self, name: str, data: Data, offset: int = 0) -> None:
        """Write part of a tensor.

        Args:
            name: Of the tensor.
            data: Its bytes from `offset` on.
            offset: First byte within the tensor.
        """
        if name in self._open:
            self._tail[name] = bytes(data)
            return
        start = self._entries[name]["data_offsets"][0]
        _write_all(self._file, data, self._data + start + offset)

    def close(self) -> int:
        """Finish the file and give the bytes of its tensors."""
        for name, data in sorted(self._tail.items()):
            start = self._end
            self._enter(Slot(name, "U8", (len(data),)), len(data))
            _write_all(self._file, data, self._data + start)
        header = json.dumps(self._entries, separators=(",", ":")).encode().ljust(self._data - 8)
        _write_all(self._file, len(header).to_bytes(8, "little") + header, 0)
        os.close(self._file)
        return self._end

    def _enter(self, slot: Slot, size: int) -> None:
        place = [self._end, self._end + size]
        self._entries[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": place}
        self._end += size


class Writer:
    """The weights of a folder: one file, or shards with an index, named as transformers names them.

    Args:
        folder: Where they go.
        groups: Slots that stay in one file together, in order.
        max_shard_size: Bytes of a file at the most, unless one group alone is larger.
    """

    def __init__(self, folder: Path, groups: Sequence[Sequence[Slot]], max_shard_size: int = MAX_SHARD_SIZE) -> None:
        self._folder = folder
        parts: list[list[Slot]] = [[]]
        size = 0
        for group in groups:
            more = sum(slot.bytes for slot in group)
            if parts[-1] and size + more > max_shard_size:
                parts.append([])
                size = 0
            parts[-1] += group
            size += more
        names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
        self._names = names if len(parts) > 1 else ["model.safetensors"]
        self._of = {slot.name: i for i, part in enumerate(parts) for slot in part}
        self._parts = parts
        self._shard: tuple[int, Shard] | None = None
        self._size = 0

    def write(self, name: str, data: Data, offset: int = 0) -> None:
        """Write part of a tensor; groups come in the order in which they were announced."""
        index = self._of[name]
        if self._shard is None or self._shard[0] != index:
            self._close_shard()
            self._shard = index, Shard(self._folder / self._names[index], self._parts[index])
        self._shard[1].write(name, data, offset)

    def close(self) -> None:
        """Finish the last file, and write the index where there are several."""
        self._close_shard()
        if len(self._names) > 1:
            index = {
                "metadata": {"total_size": self._size},
                "weight_map": {name: self._names[i] for name, i in sorted(self._of.items())},
            }
            text = json.dumps(index, indent=2) + "\n"
            (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _close_shard(self) -> None:
        if self._shard:
            self._size += self._shard[1].close()


def _write_all(file: int, data: Data, at: int) -> None:
    left = memoryview(data).cast("B")  # type: ignore[arg-type]  # NumPy's stubs do not say that arrays are buffers
    while left:
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done
