"""What a pickled weight file of PyTorch says it holds: its instructions are followed, none is run.

Format: a zip archive with data.pkl and one stored record for each storage (torch.save since 1.6), or pickles with the
storages after them (before). Only what makes a dict of plain tensors is followed; everything else is refused, sizes
that do not fit included.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.strict_json import quoted
from backend.weights.header import LFS_POINTER
from backend.weights.tensor import BITS, Tensor

MAX_PICKLE = 50_000_000  # bytes of instructions; those of 100,000 tensors take 30 MB
CHUNK = 128 * 1024  # bytes of a read
MAX_DIMENSIONS = 16

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
_TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
_PARAMETER, _DICT = "torch._utils _rebuild_parameter", "collections OrderedDict"
_PLAIN = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "BINFLOAT")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PICKLE_PROTOCOL = 2
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class Pickled(NamedTuple):
    """What a pickled weight file holds."""

    tensors: tuple[Tensor, ...]
    aliases: dict[str, str]  # a tensor → one before it that is the very same
    mapped: bool  # whether tensors can be read where they lie, without the whole file in memory


class _Name(NamedTuple):
    """Something that the instructions name, by module and name."""

    path: str


class _Storage(NamedTuple):
    """Numbers that tensors are made of."""

    key: str
    dtype: str
    numel: int


class _View(NamedTuple):
    """A tensor: part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Refused(Exception):
    """What the instructions hold beside plain tensors, as a sentence goes on after the file's name."""


def read_pickled(read: Callable[[int, int], bytes], size: int, name: str) -> Pickled:
    """Read what a file holds, and check that its sizes fit.

    Args:
        read: Gives the bytes from a start to before an end.
        size: Bytes of the file.
        name: The file's name, for errors.

    Raises:
        SpecError: It holds something else than plain tensors, or is damaged; what, and what to do.
    """
    source = _Ranges(read, size)
    try:
        start = source.read(max(len(LFS_POINTER), 4))
        source.seek(0)
        if start.startswith(LFS_POINTER):
            raise _Refused("is a Git LFS pointer, not weights")
        mapped = start.startswith(b"PK\x03\x04")
        views, stored = _zipped(source) if mapped else _plain(source)
        _check_sizes(views, stored, size)
    except _Refused as e:
        raise SpecError(f"{quoted(name)} {e}: choose a model with safetensors weights, or plain tensors.") from e
    except (
        ValueError,
        LookupError,
        OverflowError,
        EOFError,
        zipfile.BadZipFile,
        struct.error,
        NotImplementedError,
        RuntimeError,
    ) as e:
        raise SpecError(
            f"{quoted(name)} cannot be read as PyTorch's weights: download it again, or choose another."
        ) from e
    first: dict[_View, str] = {}
    aliases = {key: first[view] for key, view in views.items() if first.setdefault(view, key) != key}
    tensors = tuple(Tensor(name=key, dtype=view.storage.dtype, shape=view.shape) for key, view in views.items())
    return Pickled(tensors, aliases, mapped)


class _Ranges(io.RawIOBase):
    """A file that is read a chunk at a time, wherever it lies."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._at = 0
        self._chunk, self._start = b"", 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if end - self._at > MAX_PICKLE:
            raise _Refused(f"wants {end - self._at} bytes read at once, of which {MAX_PICKLE} are")
        if not (self._start <= self._at and end <= self._start + len(self._chunk)):
            self._start = min(self._at, max(0, self._size - CHUNK))  # the end of an archive is read backwards
            self._chunk = self._read(self._start, min(self._size, max(end, self._start + CHUNK)))
        found = self._chunk[self._at - self._start : end - self._start]
        self._at += len(found)
        return found

    def readline(self, size: int | None = -1) -> bytes:
        line = self.read(1024).partition(b"\n")  # a name of a module, of which none is longer
        found = line[0] + line[1]
        self._at += len(found) - len(line[0] + line[1] + line[2])
        return found


def _zipped(source: _Ranges) -> tuple[dict[str, _View], dict[str, int]]:
    """Return the tensors of an archive and the bytes of its storages."""
    with zipfile.ZipFile(source) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if len(records) != len(archive.infolist()):
            raise _Refused("names a record twice")
        packed = next((r for r in records.values() if r.compress_type != zipfile.ZIP_STORED), None)
        if packed or any(r.compress_size != r.file_size for r in records.values()):
            raise _Refused("holds packed records, which PyTorch never writes")
        script = next((name for name in records if name.endswith("/data.pkl")), None)
        if script is None:
            raise _Refused("is an archive without tensors")
        prefix = script.removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if any(records[n].file_size > MAX_PICKLE for n in (script, order) if n in records):
            raise _Refused(f"has more than {MAX_PICKLE} bytes of instructions")
        if order in records and archive.read(order) != b"little":
            raise _Refused("was written on a machine with another order of bytes")
        data = archive.read(script)
        beginning = f"{prefix}data/"
        stored = {n.removeprefix(beginning): r.file_size for n, r in records.items() if n.startswith(beginning)}
    return _state(_follow(io.BytesIO(data))), stored


def _plain(source: _Ranges) -> tuple[dict[str, _View], dict[str, int]]:
    """Return the tensors of a file of before torch 1.6, and the bytes that are left for its storages."""
    if _follow(source) != _MAGIC or _follow(source) != _PROTOCOL:
        raise _Refused("is none of PyTorch's weight files")
    machine = _follow(source)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _Refused("was written on a machine with another order of bytes")
    views = _state(_follow(source))
    storages = {view.storage.key: view.storage for view in views.values()}
    return views, {key: _bytes(storage) for key, storage in storages.items()}


def _check_sizes(views: dict[str, _View], stored: dict[str, int], size: int) -> None:
    """Refuse tensors beyond their storages, and storages beyond the file."""
    for key, view in views.items():
        storage, elements = view.storage, math.prod(view.shape)
        last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True))
        if (
            stored.get(storage.key) != _bytes(storage)
            or elements > storage.numel
            or (elements and last >= storage.numel)
        ):
            raise _Refused(f"says of tensor {quoted(key)} that it is larger than what is stored of it")
    storages = {view.storage.key: view.storage for view in views.values()}
    if sum(map(_bytes, storages.values())) > size or sum(_bytes_of(view) for view in views.values()) > 2 * size:
        raise _Refused("unpacks to more than it has")


def _bytes(storage: _Storage) -> int:
    return storage.numel * BITS[storage.dtype] // 8


def _bytes_of(view: _View) -> int:
    return math.prod(view.shape) * BITS[view.storage.dtype] // 8


def _state(found: Any) -> dict[str, _View]:
    """Return a state dict, if it is one of tensors alone."""
    if not isinstance(found, dict) or not found:
        raise _Refused("holds no tensors by name")
    for key, value in found.items():
        if not isinstance(value, _View):
            raise _Refused(f"holds {quoted(key)}, which is no plain tensor")
        if not key.isprintable() or key != key.strip():
            raise _Refused(f"has a tensor with an unprintable name, {quoted(key)}")
    return found


def _follow(source: Any) -> Any:
    """Follow one pickle's instructions and return what they make; names stand for themselves."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(source):
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.do(opcode.name, argument)
    raise _Refused("ends within its instructions")


class _Machine:
    """The stack of a pickle; what is on it are numbers, texts, tuples, dicts, names, storages and tensors."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def do(self, opcode: str, argument: Any) -> None:
        """Follow one instruction."""
        stack = self.stack
        if opcode in _PLAIN:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(stack[-_TUPLES[opcode] :])]
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "EMPTY_DICT":
            stack.append({})
        elif opcode == "MARK":
            self._marks.append(stack)
            self.stack = []
        elif opcode == "TUPLE":
            items = self._marked()
            self.stack.append(tuple(items))
        else:
            self._make(opcode, argument)

    def _make(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode == "GLOBAL":
            stack.append(_named(argument))
        elif opcode == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif opcode == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments))
        elif opcode == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif opcode == "SETITEMS":
            items = self._marked()
            _set(self.stack[-1], items)
        elif opcode == "BUILD":
            state = stack.pop()  # of a state dict: the versions of its modules
            if not (isinstance(stack[-1], dict) and isinstance(state, dict)):
                raise _Refused("holds objects, not plain tensors")
        elif opcode != "PROTO" or argument != _PICKLE_PROTOCOL:
            raise _Refused(f"holds objects that plain tensors do not need ({opcode})")

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self._marks.pop()
        return items


def _named(path: str) -> _Name:
    module, _, name = path.partition(" ")
    if path not in (*_TENSORS, _PARAMETER, _DICT) and not (module == "torch" and name in _STORAGES):
        raise _Refused(f"names {quoted(path.replace(' ', '.'))}, which is no plain tensor and could run code")
    return _Name(path)


def _storage(said: Any) -> _Storage:
    if not isinstance(said, tuple) or len(said) not in (5, 6) or said[0] != "storage" or said[5:] not in ((), (None,)):
        raise _Refused("keeps its tensors in another way than PyTorch does")
    _, kind, key, _, numel = said[:5]
    if not isinstance(kind, _Name) or not isinstance(key, str) or not _counts((numel,)):
        raise _Refused("keeps its tensors in another way than PyTorch does")
    return _Storage(key, _STORAGES[kind.path.removeprefix("torch ")], numel)


def _made(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("holds objects, not plain tensors")
    if function.path == _DICT and not arguments:
        return {}
    if function.path == _PARAMETER and arguments and isinstance(arguments[0], _View):
        return arguments[0]
    if function.path in _TENSORS and len(arguments) >= 4:
        storage, offset, shape, stride = arguments[:4]
        sizes = _counts(shape) and _counts(stride) and _counts((offset,)) and len(shape) == len(stride)
        if sizes and isinstance(storage, _Storage) and len(shape) <= MAX_DIMENSIONS:
            return _View(storage, offset, shape, stride)
    raise _Refused("describes a tensor wrongly")


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise _Refused("holds objects, not plain tensors")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise _Refused("has a tensor whose name is no text")
        target[key] = value


def _counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**63 for value in values)
