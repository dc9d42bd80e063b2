"""The mark in the environment of each process that is started for a folder, by which all of them are found again.

Imports little: the shim, which waits beside every child, does nothing else.
"""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARKER = "WEIGHTSMITH_RUN"


def marker_prefix(home: Path) -> str:
    """Return the mark that every process started for this folder bears in its environment."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16] + "-"


def marked(mark: str) -> Iterator[int]:
    """Find processes whose environment has a marker that begins so; Linux only, elsewhere none is found."""
    wanted = f"\0{MARKER}={mark}".encode()
    for pid in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if pid.isdigit():
            with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environment:  # gone, or another user's
                if wanted in b"\0" + environment.read():
                    yield int(pid)


def resident_bytes(mark: str) -> int:
    """Return the memory of the processes so marked, counting what they share once for each."""
    found = 0
    for pid in marked(mark):
        with suppress(OSError, IndexError):
            pages = (Path("/proc") / str(pid) / "statm").read_text().split()[1]
            found += int(pages) * os.sysconf("SC_PAGE_SIZE")
    return found


def sweep(mark: str, spare: int | None = None) -> int:
    """Kill every process so marked but `spare`, also those that left their group; return their number."""
    found: set[int] = set()
    while new := set(marked(mark)) - found - {spare}:  # again, for what those of the pass before had just started
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        found |= new
    return len(found)
