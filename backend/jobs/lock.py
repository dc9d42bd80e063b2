"""The lock of a folder that one process at a time works in."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

from backend.errors import JobError


def lock(path: Path) -> Any:
    """Take a folder's lock for as long as the file that is given back stays open.

    Raises:
        JobError: Somebody has it.
    """
    file = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        file.seek(0)
        with contextlib.closing(file):
            raise JobError(
                f"Weightsmith already runs on this data folder, as process {file.read().strip() or 'unknown'}: stop it,"
                " or set WEIGHTSMITH_DATA to another folder."
            ) from e
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
