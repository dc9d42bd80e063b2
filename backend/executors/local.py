"""Steps in child processes of this machine: the default."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from backend.disk import free_bytes
from backend.executors.contract import Listen, Machine, Network, Part
from backend.machine.hardware import gpu_bytes, memory_bytes
from backend.machine.speeds import Speeds, read_speeds
from backend.processes.child import Child, environment
from backend.processes.ranks import processes
from backend.settings import Settings


class Local:
    """Runs steps on this machine.

    Args:
        home: The folder whose processes the workers are, see backend.processes.marks.
        settings: The data folder, which the workers share, and how long one may take to stop by itself.
    """

    def __init__(self, home: Path, settings: Settings) -> None:
        self._home = home
        self._settings = settings

    def run(self, part: Part, network: Network, token: str | None, listen: Listen, canceled: Callable[[], bool]) -> int:
        """Run steps in one worker; see Executor."""

        def check() -> None:
            if canceled():
                raise _Canceled

        numbers = ",".join(map(str, part.indices))
        command = [sys.executable, "-m", "backend.jobs.worker", str(part.job), numbers, network]
        env = environment(self._home, online=network == "online")
        env["WEIGHTSMITH_DATA"] = str(self._settings.data.resolve())
        try:
            child = Child(command, env, self._home, part.job / "log.txt", listen, token)
            return child.attend(self._settings.cancel_seconds, check)
        except _Canceled:
            return 128 + signal.SIGTERM

    def machine(self) -> Machine:
        """Return what this machine has."""
        return this_machine(self._settings.data, self._settings)


def this_machine(data: Path, settings: Settings) -> Machine:
    """Return what this machine has for a recipe, on the disk of a data folder, which need not exist yet."""
    speeds = read_speeds(data) or Speeds()
    return Machine(memory_bytes(), gpu_bytes(), processes(settings), free_bytes(data), speeds)


class _Canceled(Exception):
    """Somebody wants the worker to end."""
