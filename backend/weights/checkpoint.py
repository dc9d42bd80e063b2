"""A model's safetensors files, read piece by piece: no tensor is ever whole in memory."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from backend.errors import SpecError
from backend.model_folder import read_config
from backend.weights.floats import Bytes
from backend.weights.header import Header, read_headers
from backend.weights.tensor import Tensor
from backend.weights.writer import INDEX


class Weights(Protocol):
    """Tensors that can be read piece by piece, by several threads: a checkpoint, or one with adapters merged into it.

    Attributes:
        name: What errors call it.
        identity: Differs where its bytes do.
        config: What config.json says.
        tensors: All of them, in the order in which they are best read.
    """

    name: str
    identity: str
    config: dict[str, Any]
    tensors: Sequence[Tensor]

    def read(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read the elements from `first` to before `last` of a tensor, as bytes.

        Raises:
            SpecError: The file ends before them.
        """

    def release(self, tensor: Tensor) -> None:
        """Say that a tensor will not be read again."""


class Files(Protocol):
    """Where the files of a checkpoint lie.

    Attributes:
        name: What errors call the checkpoint.
        identity: Differs where their bytes do.
        headers: Of each file by its name, in the order in which they are best read.
    """

    name: str
    identity: str
    headers: dict[str, Header]

    def open(self, file: str) -> int:
        """Return a descriptor of a file, as soon as it is there."""

    def release(self, file: str) -> None:
        """Say that a file will not be read again; its descriptor is closed already."""


class Folder:
    """The files of an admitted folder: model.safetensors, or the shards that its index names."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._folder = folder
        single = folder / "model.safetensors"
        paths = [single] if single.is_file() else _shards(folder)
        self.headers = {path.name: header for path, header in read_headers(paths).items()}
        self.identity = repr([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths])

    def open(self, file: str) -> int:
        """Return a descriptor of a file."""
        return os.open(self._folder / file, os.O_RDONLY)

    def release(self, file: str) -> None:
        """Leave the file where it is: it is the user's."""


def _shards(folder: Path) -> list[Path]:
    """Return the shards of the index: beside them can lie the same weights under other names."""
    listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(listed.values()))]


class _Place(NamedTuple):
    """Where a tensor's bytes lie."""

    file: str
    start: int  # first byte in the file


class Checkpoint:
    """The tensors of a checkpoint, in the order of their files and bytes; to be used in a `with` block.

    Args:
        files: Where its files lie; of a folder, Checkpoint.of() finds them.
        config: What config.json says.
    """

    def __init__(self, files: Files, config: dict[str, Any]) -> None:
        self.name, self.identity = files.name, files.identity
        self.config = config
        self._files = files
        self._opening = Lock()
        self._places: dict[str, _Place] = {}
        self._open: dict[str, int] = {}
        self._left: dict[str, set[str]] = {}  # by file, its tensors that are not released
        for file, header in files.headers.items():
            self._left[file] = {tensor.name for tensor in header.tensors}
            self._places |= {t.name: _Place(file, header.offsets[t.name][0]) for t in header.tensors}
        self.tensors: Sequence[Tensor] = tuple(t for header in files.headers.values() for t in header.tensors)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the checkpoint in an admitted folder."""
        return cls(Folder(folder), read_config(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open = {}

    def read(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read the elements from `first` to before `last` of a tensor, as bytes.

        Raises:
            SpecError: The file ends before them.
        """
        place, width = self._places[tensor.name], tensor.bytes // max(tensor.elements, 1)
        raw = np.empty((last - first) * width, np.uint8)
        file, done = self._descriptor(place.file), 0
        while done < len(raw):
            got = os.preadv(file, [raw[done:]], place.start + first * width + done)  # type: ignore[list-item]
            if got == 0:
                raise SpecError(f"The weights of '{self.name}' end within '{tensor.name}': download them again.")
            done += got
        return raw

    def release(self, tensor: Tensor) -> None:
        """Say that a tensor will not be read again; a file is closed with its last one."""
        file = self._places[tensor.name].file
        left = self._left[file]
        left.discard(tensor.name)
        if not left:
            if file in self._open:
                os.close(self._open.pop(file))
            self._files.release(file)

    def _descriptor(self, file: str) -> int:
        with self._opening:
            if file not in self._open:
                self._open[file] = self._files.open(file)
            return self._open[file]
