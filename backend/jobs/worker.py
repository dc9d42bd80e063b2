"""The worker: steps of one job in a process of its own, described by the job's folder.

`python -m backend.jobs.worker FOLDER INDEX[,INDEX] online|offline|hosts|rank` reads the token, if any, from standard
input and prints events as JSON lines. A step that does not talk to the Hub gives up the network before anything else is
imported: a process enters a new network only while it has a single thread, and NumPy starts some. `hosts` keeps it, for
machines that train together; `rank` is one of several processes of a step and has what its launcher has.
"""

import ctypes
import fcntl
import gc
import json
import os
import socket
import struct
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from backend.disk import words
from backend.errors import AppError, LoginError
from backend.processes import ranks
from backend.processes.child import NICENESS, mask
from backend.progress import Report, silent

HEARTBEAT = 5.0  # seconds

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def main() -> int:
    """Run the step; 0, or 1 after an `error` event."""
    folder, indices = Path(sys.argv[1]), [int(number) for number in sys.argv[2].split(",")]
    token = json.loads(sys.stdin.readline() or "{}").get("token")
    emit = _events()
    report = _report(emit)
    if sys.argv[3] == ranks.RANK:
        ranks.die_with_the_launcher()
    else:
        os.nice(NICENESS)
    if sys.argv[3] == "offline":
        report.log(_leave_network())
    threading.Thread(target=_beat, args=(emit,), daemon=True).start()
    from backend.machine.hardware import forget_peak  # noqa: PLC0415 - after the network is given up

    try:
        for index in indices:
            if index > indices[0]:
                emit({"event": "step", "index": index})
                forget_peak()
                report = _report(emit)
            do(folder, index, sys.argv[3] == "online", token, report)
    except AppError as e:
        text, login = mask(str(e), [token] if token else []), isinstance(e, LoginError)
    except MemoryError:
        text, login = "There is not enough memory for this step: choose a smaller model.", False
    except OSError as e:
        traceback.print_exc()
        text, login = words(e), False
    else:
        return 0
    emit({"event": "error", "text": text, "login": login})
    return 1


def do(folder: Path, index: int, online: bool, token: str | None, report: Report) -> None:
    """Do a step of the job in a folder; its output is sealed when this returns.

    Args:
        folder: The job's folder.
        index: Of the step, from 0.
        online: Whether this process has the network; of a step that takes two processes, which part this is.
        token: The caller's Hub token, for what needs the network.
        report: Receives progress.
    """
    from backend.jobs.job import read_spec  # noqa: PLC0415 - after the network is given up
    from backend.stages import STEPS  # noqa: PLC0415
    from backend.stages.work import Work  # noqa: PLC0415

    spec = read_spec(folder)
    STEPS[spec.steps[index]].run(Work(folder, spec, index, online), token, report)


def _report(emit: Any) -> Report:
    return Report(emit) if ranks.rank() == 0 else silent()


def _events() -> Any:
    """Keep standard output for events; what a library prints goes to the log."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with lock:
            pipe.write(json.dumps(event) + "\n")
            pipe.flush()

    return emit


def _beat(emit: Any) -> None:
    stop = threading.Event()
    while not stop.wait(HEARTBEAT):
        with suppress(BrokenPipeError):
            emit({"event": "beat"})


def _leave_network() -> str:
    """Enter an empty network namespace where the system lets us; say which isolation was reached."""
    uid, gid = os.getuid(), os.getgid()
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    if unshare is None or unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return "Isolation: no token and the Hub's offline mode; this system grants no network namespace."
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    with socket.socket() as lo:  # up: processes that train together talk through it, and nobody else is on it
        fcntl.ioctl(lo, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    return "Isolation: no token, no network."


if __name__ == "__main__":
    ended = main()
    gc.freeze()  # to look for what could be freed takes 40 ms, and the memory goes with the process
    if ranks.world_size() > 1:  # Python's own end may abort while threads of torch.distributed still run
        sys.stderr.flush()
        os._exit(ended)
    sys.exit(ended)
