"""The shim between the app and a child: when the app dies, however it dies, all that bears the child's mark dies too.

`python -m backend.processes.shim FD COMMAND…` runs COMMAND in the group that the shim leads and holds the reading end
of a pipe whose other end only the app has. The pipe's end of file is the app's death. Of all ways to start a child
this one left nothing behind; PR_SET_PDEATHSIG and plain new sessions did.
"""

import os
import resource
import signal
import sys
import threading
import time

from backend.processes.marks import MARKER, sweep

GRACE = 2.0  # seconds between SIGTERM and SIGKILL when the app has died


def main() -> int:
    """Run the command, give its exit code; 128 + n when signal n ended it."""
    death, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(death, False)
    # A handler, not SIG_IGN: an ignored signal would stay ignored in the command.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold tokens and data
    threading.Thread(target=_die_with_the_app, args=(death,), daemon=True).start()
    command_id = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    code = os.waitstatus_to_exitcode(os.waitpid(command_id, 0)[1])
    os.killpg(0, signal.SIGTERM)  # whatever the command left in the group; the shim itself stays
    _sweep()  # here too: a dead app sweeps nothing
    return 128 - code if code < 0 else code


def _die_with_the_app(death: int) -> None:
    while os.read(death, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE)
    _sweep()
    os.killpg(0, signal.SIGKILL)


def _sweep() -> None:
    sweep(os.environ[MARKER], os.getpid())


if __name__ == "__main__":
    sys.exit(main())
