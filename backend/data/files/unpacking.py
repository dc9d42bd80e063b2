"""Unpacking: gzip, read as it comes, and stopped at a size that no honest file reaches."""

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from backend.data.findings import fault
from backend.errors import SpecError

MAX_BYTES = 1_000_000_000  # of a file, unpacked
MAX_EXPANSION = 20  # times its packed size; text packs to a fifth or a tenth
SMALL = 1_000_000  # bytes; what unpacks to less does no harm, however well it was packed


def open_bytes(path: Path, name: str, packed: bool) -> BinaryIO:
    """Open a file's bytes, unpacked.

    Args:
        path: The file.
        name: What it is called in sentences.
        packed: Whether it is packed with gzip.
    """
    if not packed:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path, name), 1 << 16))


class _Unpacked(io.RawIOBase):
    """Unpacks gzip and stops at the limits, while reading."""

    def __init__(self, path: Path, name: str) -> None:
        self._file = gzip.open(path)  # noqa: SIM115, closed with this
        self._name = name
        self._done = 0
        self._limit = min(MAX_BYTES, max(SMALL, MAX_EXPANSION * path.stat().st_size))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        try:
            data = self._file.read(len(buffer))
        except (EOFError, OSError, zlib.error) as e:
            raise fault(self._name, "It is damaged or cut off inside its gzip packing: upload again.") from e
        self._done += len(data)
        if self._done > self._limit:
            raise self._too_large()
        buffer[: len(data)] = data
        return len(data)

    def _too_large(self) -> SpecError:
        return fault(
            self._name,
            f"It unpacks to more than {self._limit / 1e6:.0f} MB, which is {MAX_EXPANSION} times its size or 1 GB:"
            " unpack it yourself, look at it, and give the table inside.",
        )

    def close(self) -> None:
        self._file.close()
        super().close()
