"""Scratch: folders that are there while a process works in them; what a killed one has left goes when the next comes.

A folder in use is locked, and the system lets go of the lock however its process ends.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".weightsmith-"


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """Give a new folder that goes when the block ends, unless it was renamed.

    Args:
        place: The folder that it is made in.
    """
    gate = _lock(place)  # until the new one is locked nobody takes it for one that was left
    try:
        clear(place)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = _lock(folder)
    finally:
        os.close(gate)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def clear(place: Path) -> None:
    """Remove what killed processes have left in a folder."""
    for left in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, or another user's
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder until what is given back is closed."""
    lock = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # on a disk without locks nothing is ever taken for left
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
