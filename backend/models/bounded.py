"""What a program of a stranger may take while it runs here: seconds of this process, and memory.

A chat template is such a program. The sandbox keeps it from files and names, not from counting to ten milliards.
"""

import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

SECONDS = 3.0
"""Of the processor, for one conversation; the slowest known templates take a thousandth of it."""

GRACE = 3
"""Seconds after which a process is ended that does not end by itself."""

MEMORY = 1_000_000_000
"""Bytes beside what the process has."""


class TakesTooMuch(Exception):
    """It was ended because it took more than it may.

    Args:
        what: That it took: "more than 10 s".
    """


@contextmanager
def bounded() -> Iterator[None]:
    """End what runs within, in the main thread, when it has taken SECONDS or MEMORY.

    Raises:
        TakesTooMuch: It has.
    """
    if threading.current_thread() is not threading.main_thread():  # the system tells no other that its time is over
        yield
        return

    def over(*_: object) -> None:
        raise TakesTooMuch(f"more than {SECONDS:g} s")

    (cpu, most_cpu), (soft, hard) = resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGPROF, over)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (_allowed(soft), hard))
        # What computes one large number hears no signal: the system ends the process then, and who watches it says so.
        ends = int(time.process_time() + SECONDS) + GRACE
        resource.setrlimit(
            resource.RLIMIT_CPU, (ends if most_cpu == resource.RLIM_INFINITY else min(ends, most_cpu), most_cpu)
        )
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        yield
    except MemoryError as e:
        raise TakesTooMuch(f"more than {MEMORY / 1e9:.0f} GB of memory") from e
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, most_cpu))
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _allowed(most: int) -> int:
    """Return the bytes that this process may have while it is bounded."""
    has = _data_bytes(int(time.monotonic()))
    if has is None:  # only Linux bounds what is allocated so
        return most
    return has + MEMORY if most == resource.RLIM_INFINITY else min(most, has + MEMORY)


@lru_cache(maxsize=1)  # rows are rendered ten thousand times a second
def _data_bytes(second: int) -> int | None:
    """Return the bytes that this process has now."""
    status = Path("/proc/self/statm")
    return int(status.read_text(encoding="ascii").split()[5]) * resource.getpagesize() if status.is_file() else None
