"""The header of a safetensors file, checked before anything relies on it.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes without gap or overlap
(github.com/huggingface/safetensors#format).
"""

import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.strict_json import parse_object, quoted
from backend.weights.tensor import BITS, Tensor

MAX_HEADER = 16_000_000  # bytes of one; the format allows 100 MB, the largest model's single file has 12
MAX_HEADERS = 24_000_000  # bytes of all files of a model
MAX_TENSORS = 120_000  # of a model; DeepSeek-V3 has 91,991
MAX_NAME = 500  # characters of a tensor's; what looks for something in names may take the square of it
_SLACK = 10_000  # braces and brackets in texts of the metadata
PROBE = 64 * 1024  # bytes of the first read; most headers fit
LFS_POINTER = b"version https://git-lfs"


class Allowance:
    """What the headers of one model may take together, whichever threads read them."""

    def __init__(self) -> None:
        self._bytes = MAX_HEADERS
        self._tensors = MAX_TENSORS
        self._lock = Lock()

    def take(self, name: str, size: int = 0, tensors: int = 0) -> None:
        """Take bytes, before they are read, or tensors, before they are looked at.

        Args:
            name: The file's name, for errors.
            size: Bytes of its header.
            tensors: That it lists.

        Raises:
            SpecError: That is more than is left.
        """
        with self._lock:
            self._bytes -= size
            self._tensors -= tensors
        if self._bytes < 0:
            raise _fault(name, f"and the files before it have headers of more than {MAX_HEADERS} bytes together")
        if self._tensors < 0:
            raise _fault(name, f"and the files before it hold more than {MAX_TENSORS} tensors")


class Header(NamedTuple):
    """What a safetensors file says it holds."""

    tensors: tuple[Tensor, ...]  # in the order of their bytes
    offsets: dict[str, tuple[int, int]]  # name → first byte in the file and the one after the last
    metadata: dict[str, str]


def read_header(path: Path, allowance: Allowance | None = None) -> Header:
    """Read and check the header of a local file.

    Args:
        path: The file.
        allowance: Of all files of its model, where there are several.

    Raises:
        SpecError: The file is damaged, cut off or hostile; its name and what to do.
    """
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)

            def read(start: int, end: int) -> bytes:
                f.seek(start)
                return f.read(end - start)

            return header_from(read, size, path.name, allowance=allowance)
    except OSError as e:
        raise SpecError(f"Could not read {quoted(path.name)}. {e.strerror}: check the file.") from e


def read_headers(paths: Iterable[Path]) -> dict[Path, Header]:
    """Read and check the headers of all local files of a model; see read_header()."""
    allowance = Allowance()
    return {path: read_header(path, allowance) for path in paths}


def header_from(
    read: Callable[[int, int], bytes],
    file_size: int,
    name: str,
    probe: int = PROBE,
    allowance: Allowance | None = None,
) -> Header:
    """Read and check a header from wherever the file lies.

    Args:
        read: Gives the bytes from a start to before an end.
        file_size: Bytes of the whole file.
        name: The file's name, for errors.
        probe: Bytes of the first read.
        allowance: Of all files of the model, where there are several.
    """
    allowance = allowance or Allowance()
    start = read(0, min(probe, file_size))
    if start.startswith(LFS_POINTER):
        raise _fault(name, "is a Git LFS pointer, not weights", "fetch the file itself with `git lfs pull`")
    if file_size < 8 or len(start) < 8:
        raise _fault(name, f"has only {file_size} bytes", "download it again")
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER:
        raise _fault(name, f"announces a header of {length} bytes; {MAX_HEADER} are allowed")
    if length > file_size - 8:
        raise _fault(name, f"announces a header of {length} bytes but has {file_size} in all", "download it again")
    allowance.take(name, size=length)
    raw = start[8 : 8 + length]
    if len(raw) < length:
        raw += read(8 + len(raw), 8 + length)
    # Before anything is built: a tensor is written with one brace and two brackets.
    tensors = max(raw.count(b"{") - _SLACK, (raw.count(b"[") - _SLACK) // 2, raw.count(b'"data_offsets"'))
    allowance.take(name, tensors=tensors)
    return parse_header(raw, file_size, name)


def parse_header(raw: bytes, file_size: int, name: str) -> Header:
    """Check a header's JSON against the size of its file.

    Args:
        raw: The JSON, without the 8 bytes of its length.
        file_size: Bytes of the whole file.
        name: The file's name, for errors.

    Raises:
        SpecError: Which tensor is at fault and how.
    """
    data = parse_object(raw, name, MAX_HEADER)
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _fault(name, "has metadata that are not text")
    base = 8 + len(raw)
    spans = sorted(((*_span(entry, tensor, name), tensor) for tensor, entry in data.items()))
    expected = 0
    for start, end, tensor in spans:
        if start != expected:
            how = "overlaps the one before" if start < expected else "leaves a gap before it"
            raise _fault(name, f"is damaged: tensor {quoted(tensor)} {how}", "download it again")
        expected = end
    if base + expected != file_size:
        raise _fault(name, f"has {file_size} bytes but its header describes {base + expected}", "download it again")
    tensors = tuple(Tensor(name=t, dtype=data[t]["dtype"], shape=tuple(data[t]["shape"])) for _, _, t in spans)
    return Header(tensors, {t: (base + start, base + end) for start, end, t in spans}, metadata)


def _span(entry: Any, tensor: str, name: str) -> tuple[int, int]:
    """Return the offsets of a tensor after checking that type × shape fills them."""
    where = f"tensor {quoted(tensor)}"
    if len(tensor) > MAX_NAME:
        raise _fault(name, f"has a {where} whose name is longer than {MAX_NAME} characters")
    if not tensor.isprintable() or tensor != tensor.strip():
        raise _fault(name, f"has a tensor with an unprintable name, {quoted(tensor)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _fault(name, f"describes {where} wrongly")
    dtype = entry["dtype"]
    shape = entry["shape"]
    offsets = entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _fault(name, f"has {where} of the unknown type {quoted(dtype)}")
    if not _counts(shape) or len(shape) > 16:
        raise _fault(name, f"has {where} of an impossible shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _fault(name, f"has {where} with wrong offsets")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise _fault(name, f"has {where}, whose type and shape do not fill its {offsets[1] - offsets[0]} bytes")
    return offsets[0], offsets[1]


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _fault(name: str, what: str, remedy: str = "choose another model") -> SpecError:
    return SpecError(f"{quoted(name)} {what}: {remedy}.")
