"""The disk: files written whole or not at all and read as if torn, folders in use, hashes.

A folder or file in use is locked, and the system releases the lock however its process ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from backend.errors import JobError

PARTIAL = ".partial"
"""Ends the name of what is not whole yet."""

JOURNAL = "progress.json"
"""The file in a `.partial` folder that says what in it is finished, so that a killed run resumes after that."""

PREFIX = ".weightsmith-"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


def write_whole(path: Path, data: str | bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all: until every byte is on the disk, what was there before stays.

    Args:
        path: The file; its folder exists.
        data: What it holds from then on.
        mode: Who may do what with it, less the process's umask.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")  # another process may write it, too
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    fsync(path.parent)


def read_whole(path: Path, kind: type[T]) -> T | None:
    """Return what a JSON file says; None where it is missing, torn, or of another version.

    Args:
        path: The file.
        kind: What it should hold: a model, or a type such as `dict[str, int]`.
    """
    adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
    try:
        return adapter.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Write an object as a line of its own behind what a file holds, also where a crash has cut its last line."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if cut else b"") + json.dumps(line).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file's lines; what a crash has cut is left out, and so is a missing file."""
    found = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    for text in lines:
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                found.append(line)
    return found


def replace_folder(folder: Path, target: Path) -> None:
    """Rename a folder to its final name; what has that name goes only when the new one has taken its place."""
    stale = None
    if target.exists():
        stale = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target.parent))
        target.rename(stale)
    folder.rename(target)
    fsync(target.parent)
    if stale:
        shutil.rmtree(stale, ignore_errors=True)


def forget(place: Path, pattern: str, days: float) -> None:
    """Remove what matches in a folder and was not changed for some days, such as half a download."""
    for path in [*place.glob(pattern)]:
        with suppress(OSError):  # gone meanwhile
            newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
            if time.time() - newest > days * 86_400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free on a folder's disk; the folder need not exist yet."""
    place = next(above for above in (folder.resolve(), *folder.resolve().parents) if above.exists())
    return shutil.disk_usage(place).free


def sha256(path: Path) -> str:
    """Hash a file in chunks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def words(error: OSError) -> str:
    """Say what the disk refused, and what to do."""
    remedy = "free some space" if error.errno in _FULL else "check the disk and who may write there"
    return f"Could not read or write in the data folder. {error.strerror or error}: {remedy}, then retry."


def lock(path: Path) -> Any:
    """Lock a folder by a file in it, for as long as the file that is returned stays open.

    Raises:
        JobError: Another process has it, or the disk has no locks.
    """
    file = path.open("a+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        file.seek(0)
        with contextlib.closing(file):
            owner = file.read(20).decode(errors="replace").strip() or "unknown"
        if not isinstance(e, BlockingIOError):
            text = f"The disk of '{path.parent.name}' has no locks ({e.strerror})"
        else:
            text = f"Weightsmith already runs on this data folder, as process {owner}: stop it"
        raise JobError(f"{text}: set WEIGHTSMITH_DATA to another folder.") from e
    with suppress(OSError):  # the number is for people; on a full disk the lock holds without it
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """Yield a new folder that goes when the block ends, unless it was renamed.

    Args:
        place: The folder that it is made in.
    """
    gate = _hold(place)  # until the new one is locked nobody takes it for one that was left
    try:
        clear(place)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        held = _hold(folder)
    finally:
        os.close(gate)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def clear(place: Path) -> None:
    """Remove what killed processes have left in a folder."""
    for left in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, or another user's
            held = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(held)


def _hold(folder: Path) -> int:
    """Lock a folder until what is returned is closed."""
    held = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # on a disk without locks nothing is ever taken for left
        fcntl.flock(held, fcntl.LOCK_EX)
    return held
