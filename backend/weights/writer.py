"""Safetensors files written piece by piece, in any order, as shards with an index.

Where every byte goes, and so the size of every file, is known before the first one is written. Of small tensors only
the most that they can take is known: they lie between the header and the others, and the header's padding takes up
what they leave. Within a file wider types come first, so that every tensor is aligned; those of one type keep the order
in which they come, so that whoever reads the file meets them in the order of the model that they were made from.
"""

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from backend.weights.output import Output
from backend.weights.tensor import BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Data = bytes | NDArray[Any]

MAX_SHARD_SIZE = 5_000_000_000  # bytes; transformers' default is "5GB"
INDEX = "model.safetensors.index.json"
ALIGN = 4096  # of the first tensor, so that pieces fill whole pages of the disk


class Slot(NamedTuple):
    """A tensor to be written; an `open` one takes its shape's bytes at most."""

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
    """Where the tensors of one file go.

    Attributes:
        file: Its name.
        size: Bytes of the file.
        names: Its tensors.
    """

    def __init__(self, file: str, slots: Sequence[Slot]) -> None:
        self.file = file
        self.names = [slot.name for slot in slots]
        self._open = sorted((slot for slot in slots if slot.open), key=lambda slot: slot.name)
        self._fixed = sorted((slot for slot in slots if not slot.open), key=lambda slot: -BITS[slot.dtype])
        widest = len(self._header({slot.name: slot.bytes for slot in self._open}))
        most = sum(slot.bytes for slot in self._open)
        self._data = -(-(8 + widest + most) // ALIGN) * ALIGN
        self.size = self._data
        self._places: dict[str, int] = {}
        for slot in self._fixed:
            self._places[slot.name] = self.size
            self.size += slot.bytes

    @property
    def fixed(self) -> int:
        """Bytes of its tensors, without the open ones."""
        return sum(slot.bytes for slot in self._fixed)

    @property
    def most(self) -> int:
        """Bytes of its tensors at most."""
        return self.fixed + sum(slot.bytes for slot in self._open)

    def place(self, name: str) -> int | None:
        """Return where a tensor begins in the file; None for an open one."""
        return self._places.get(name)

    def head(self, given: dict[str, bytes]) -> bytes:
        """Return all that lies before the first tensor of known size.

        Args:
            given: The data of the open ones.
        """
        data = b"".join(given[slot.name] for slot in self._open)
        header = self._header({name: len(content) for name, content in given.items()})
        header = header.ljust(self._data - 8 - len(data))
        return len(header).to_bytes(8, "little") + header + data

    def _header(self, open_bytes: dict[str, int]) -> bytes:
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for slot in (*self._open, *self._fixed):
            shape = [open_bytes[slot.name]] if slot.open else list(slot.shape)
            first, end = end, end + (shape[0] if slot.open else slot.bytes)
            entries[slot.name] = {"dtype": slot.dtype, "shape": shape, "data_offsets": [first, end]}
        return json.dumps(entries, separators=(",", ":")).encode()


def into_shards(groups: Sequence[Sequence[Slot]], max_shard_size: int = MAX_SHARD_SIZE) -> list[Shard]:
    """Spread tensors over one file, or over shards, named as transformers names them.

    Args:
        groups: Slots that stay in one file together, in order.
        max_shard_size: Bytes of a file's tensors at most, unless one group alone has more.
    """
    parts: list[list[Slot]] = [[]]
    size = 0
    for group in groups:
        more = sum(slot.bytes for slot in group)
        if parts[-1] and size + more > max_shard_size:
            parts.append([])
            size = 0
        parts[-1] += group
        size += more
    if len(parts) == 1:
        return [Shard("model.safetensors", parts[0])]
    return [Shard(f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors", part) for i, part in enumerate(parts)]


def index(shards: Sequence[Shard], parameters: int, tensor_bytes: int | None = None) -> bytes | None:
    """Return the content of the index, or None where there is one file alone.

    Args:
        shards: All of them.
        parameters: Of the model.
        tensor_bytes: Of all tensors; None before they are written: the length of the content is the same.
    """
    if len(shards) == 1:
        return None
    names = {name: shard.file for shard in shards for name in shard.names}
    most = sum(shard.most for shard in shards)
    sizes = {"total_parameters": parameters, "total_size": most if tensor_bytes is None else tensor_bytes}
    text = json.dumps({"metadata": sizes, "weight_map": dict(sorted(names.items()))}, indent=2)
    return (text + " " * (len(str(most)) - len(str(sizes["total_size"]))) + "\n").encode()


class Writer:
    """One file on its way to the disk; pieces may come in any order, from several threads.

    Args:
        output: Where it goes.
        shard: What the file holds, and where.
        more: Whether what the file holds already is kept.
    """

    def __init__(self, output: Output, shard: Shard, more: bool = False) -> None:
        self._output = output
        self._shard = shard
        self._given: dict[str, bytes] = {}
        output.begin(shard.file)
        self._file = os.open(output.folder / shard.file, os.O_WRONLY | os.O_CREAT | (0 if more else os.O_TRUNC), 0o644)

    def write(self, name: str, data: "Data", offset: int = 0) -> None:
        """Write part of a tensor.

        Args:
            name: Of the tensor.
            data: Its bytes from `offset` on; of an open one, all of them.
            offset: First byte within the tensor.
        """
        place = self._shard.place(name)
        if place is None:
            self._given[name] = bytes(data)
        else:
            _write_all(self._file, data, place + offset)

    def close(self) -> None:
        """Write the header: the file is finished."""
        _write_all(self._file, self._shard.head(self._given), 0)
        os.close(self._file)
        given = sum(len(data) for data in self._given.values())
        self._output.finish(self._shard.file, self._shard.fixed + given)


def _write_all(file: int, data: "Data", at: int) -> None:
    left = memoryview(data).cast("B")  # type: ignore[arg-type]  # NumPy's stubs do not say that arrays are buffers
    while left:
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done
