"""Running the steps of one job: one worker a step, sealed steps skipped, so that a killed job goes on where it was.

A look at a model that lies here already is no step worth a process: the worker of the step after it does both.
"""

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backend.artifacts.artifact import Artifact
from backend.artifacts.sealing import forget_resumed, is_sealed, open_artifact, put_in_place, whole
from backend.disk import JOURNAL, PARTIAL, append_line, clear, free_bytes, words
from backend.errors import JobError, LoginError, SpecError
from backend.executors.contract import Executor, Listen, Network, Part
from backend.jobs.job import write_spec
from backend.processes.child import Hearing, Silent, killed, last_words
from backend.settings import Settings
from backend.spec import Spec
from backend.stages import STEPS
from backend.stages.work import stage_folder

EVENTS = "events.jsonl"

LEAST_FREE = 1_000_000
"""Bytes; where less is free, what failed in a library's own way failed for want of room."""


class Canceled(JobError):
    """Somebody canceled the job."""


class Interrupted(JobError):
    """The worker was killed or got stuck; the job can go on from its last sealed step."""


class Run:
    """One run of a job in its folder.

    Args:
        folder: The job's folder; what is sealed in it is kept.
        spec: What is to be done.
        executor: Where the steps run.
        settings: Where models lie, and whether several machines train together.
        machine: Held during each step that loads a model, where other jobs do such steps, too.
    """

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        executor: Executor,
        settings: Settings,
        machine: threading.Semaphore | None = None,
    ) -> None:
        self.folder = folder
        self._spec = spec
        self._executor = executor
        self._hosts = settings.accelerate_config is not None
        self._models = settings.models
        self._sealed: set[int] = set()  # just now, by a worker that ended well
        self._machine = machine or threading.Semaphore()
        self._cancel = threading.Event()

    def cancel(self) -> None:
        """Stop the running worker and all it started; go() then raises Canceled."""
        self._cancel.set()

    def go(self, token: str | None, listen: Listen) -> None:
        """Run every step that is not sealed yet, and what comes after a step that had to be made again.

        What follows a fetch stays: the commits are pinned, so that it brings the same again.

        Args:
            token: For the steps that talk to the Hub; the others never get it.
            listen: Receives every event, and `{"event": "step", "index", "name"}` as each step begins.

        Raises:
            Canceled, Interrupted, LoginError, JobError: Why it ended early.
        """
        try:
            write_spec(self.folder, self._spec)
            newest = ""  # when the last of the steps was made that others follow from
            for index, name in enumerate(self._spec.steps):
                folder = stage_folder(self.folder, self._spec, index)
                made = open_artifact(folder) if index in self._sealed else whole(folder)
                if made is None or made.created < newest:
                    made = self._made(index, name, token, listen)
                if not STEPS[name].repeats:
                    newest = max(newest, made.created)
        except OSError as e:
            raise JobError(words(e)) from e

    def _made(self, index: int, name: str, token: str | None, listen: Listen) -> Artifact:
        """Run a step, and return what it has sealed."""
        self._record({"event": "step", "index": index, "name": name}, listen)
        together = self._together(index)
        with self._turn(self._spec.steps[together[-1]], listen):
            self._work(together, token, listen)
        self._sealed |= {*together}
        try:
            return open_artifact(stage_folder(self.folder, self._spec, index))
        except SpecError as e:
            raise JobError(f"The step '{name}' ended without a result: see the log, then retry.") from e

    def _together(self, index: int) -> list[int]:
        """Return the steps that one worker does, from this one on."""
        follows = index == 0 and self._spec.only_looks(self._models)
        return [0, 1] if follows and not is_sealed(stage_folder(self.folder, self._spec, 1)) else [index]

    @contextmanager
    def _turn(self, name: str, listen: Listen) -> Iterator[None]:
        """Wait until no other job has the machine, for a step that needs it."""
        if not STEPS[name].alone:
            yield
            return
        if not self._machine.acquire(blocking=False):
            self._record({"event": "log", "text": "Waiting for the job that has the machine."}, listen)
            while not self._machine.acquire(timeout=0.2):
                if self._cancel.is_set():
                    raise Canceled("The job was canceled.")
        try:
            yield
        finally:
            self._machine.release()

    def _work(self, indices: list[int], token: str | None, listen: Listen) -> None:
        """Have a worker do steps."""
        name = self._spec.steps[indices[-1]]
        code, error = self._run(name, Part(self.folder, tuple(indices)), token, listen)
        if error:
            raise LoginError(error["text"]) if error["login"] else JobError(error["text"])
        if code == 128 + signal.SIGXCPU:
            text = "The model's chat template takes too long for one conversation: choose another model."
            raise JobError(text)
        if code > 128:
            raise Interrupted(killed(f"The step '{name}'", code - 128))
        if code:
            said = last_words(self.folder / "log.txt")
            self._record({"event": "log", "text": said}, listen)
            if "No space left" in said or free_bytes(self.folder) < LEAST_FREE:
                raise JobError(f"The disk became full in the step '{name}': free some space, then retry.")
            raise JobError(f"The step '{name}' failed unexpectedly: the end of the log says why; retry, or report it.")

    def _run(self, name: str, part: Part, token: str | None, listen: Listen) -> tuple[int, dict[str, Any] | None]:
        """Run steps; return the worker's exit code and its error."""
        started, most = time.monotonic(), self._spec.step_seconds

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                event["name"] = self._spec.steps[event["index"]]
            self._record(event, listen)

        def late() -> bool:
            return time.monotonic() - started > most

        heard = Hearing(tell)
        token = token if STEPS[name].online else None
        try:
            code = self._executor.run(part, self._network(name), token, heard, lambda: self._cancel.is_set() or late())
        except Silent as e:
            raise Interrupted(f"The step '{name}' {e}.") from e
        finally:
            tidy(self.folder)
        if self._cancel.is_set() and code:
            raise Canceled("The job was canceled.")
        if late() and code:
            raise JobError(
                f"The look at the rows was ended after {most:.0f} s: look at a slice of them, such as train[:1000],"
                " or choose another model."
            )
        return code, heard.error

    def _network(self, name: str) -> Network:
        if STEPS[name].online:
            return "online"
        return "hosts" if STEPS[name].machines and self._hosts else "offline"

    def _record(self, event: dict[str, Any], listen: Listen) -> None:
        event = {"time": round(time.time(), 3), **event}
        with suppress(OSError):  # a full disk: what is said is lost, and what is made goes on as long as it can
            append_line(self.folder / EVENTS, event)
        listen(event)


def tidy(job: Path) -> None:
    """Remove what an unfinished step left in a job's folder, unless another run can go on from it.

    A step that was killed between its manifest and its name is done.
    """
    stages = job / "stages"
    for path in stages.glob(f"*{PARTIAL}"):
        if is_sealed(path) and not is_sealed(path.with_suffix("")):
            put_in_place(path, path.with_suffix(""))
        elif not (path / JOURNAL).is_file():
            shutil.rmtree(path, ignore_errors=True)
    for path in stages.glob("*"):
        if path.suffix != PARTIAL:
            forget_resumed(path)
    clear(stages)
