"""A model's safetensors files, read piece by piece: no tensor is ever whole in memory."""

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from backend.errors import SpecError
from backend.models.facts import Tensor
from backend.weights.header import read_header
from backend.weights.kernels import Bytes


class Place(NamedTuple):
    """Where a tensor's bytes lie."""

    tensor: Tensor
    file: int  # descriptor
    start: int  # first byte in the file


class Checkpoint:
    """The tensors of a folder, in the order of their shards and bytes; to be used in a `with` block.

    Args:
        folder: Admitted: model.safetensors, or shards with unique tensor names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = ExitStack()
        self._places: dict[str, Place] = {}

    def __enter__(self) -> Self:
        single = self._folder / "model.safetensors"
        for path in [single] if single.is_file() else sorted(self._folder.glob("*.safetensors")):
            header = read_header(path)
            file = os.open(path, os.O_RDONLY)
            self._files.callback(os.close, file)
            for tensor in header.tensors:
                self._places[tensor.name] = Place(tensor, file, header.offsets[tensor.name][0])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._files.close()

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [place.tensor for place in self._places.values()]

    def read(self, tensor: Tensor, first: int, last: int) -> Bytes:
        """Read the elements from `first` to before `last` of a tensor, as bytes.

        Raises:
            SpecError: The file ends before them.
        """
        place, width = self._places[tensor.name], tensor.bytes // max(tensor.elements, 1)
        raw = np.empty((last - first) * width, np.uint8)
        done = 0
        while done < len(raw):
            got = os.preadv(place.file, [raw[done:]], place.start + first * width + done)  # type: ignore[list-item]
            if got == 0:
                raise SpecError(
                    f"The weights of '{self._folder.name}' end within '{tensor.name}': download them again."
                )
            done += got
        return raw
