"""The contract of an executor: a place where steps of jobs run, and what estimates ask of it.

An executor runs `python -m backend.jobs.worker` for a job's folder, wherever that is, brings back what the worker says
and what it has sealed, and ends it with all that it has started. Which steps run, what their end means and what is kept
is the runner's: it looks the same wherever a job runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from backend.machine.speeds import Speeds

Listen = Callable[[dict[str, Any]], None]

Network = Literal["online", "offline", "hosts"]
"""What a step may reach: the Hub; nothing; or other machines that do the step together with this one."""


class Part(NamedTuple):
    """Steps of a job that one worker does, one after the other."""

    job: Path  # its folder, with the spec and the results of the steps before
    indices: tuple[int, ...]


class Machine(NamedTuple):
    """What a recipe is to run on."""

    memory: int  # bytes
    gpu: int = 0  # bytes of the smallest GPU; 0 where there is none
    processes: int = 1  # that train together
    disk: int = 0  # bytes that are free
    speeds: Speeds = Speeds()

    @property
    def room(self) -> int:
        """Bytes that must hold the model, and all that is trained and kept for it."""
        return self.gpu or self.memory


class Executor(Protocol):
    """A place where steps run."""

    def run(self, part: Part, network: Network, token: str | None, listen: Listen, canceled: Callable[[], bool]) -> int:
        """Run steps to their end, or until they are canceled.

        Args:
            part: The steps.
            network: What they may reach.
            token: The caller's, for a step that talks to the Hub.
            listen: Takes each event of the worker: progress, log, metrics, error, signs of life.
            canceled: Asked again and again; once it is true, the worker and all that it has started is ended.

        Returns:
            The worker's exit code: 0, or 1 after an `error` event, or 128 + n if signal n ended it.

        Raises:
            Silent: It gave no sign of life, and was ended.
        """

    def machine(self) -> Machine:
        """Return what there is to run on."""
