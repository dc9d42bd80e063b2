"""A job in the foreground, for the command line: no table, no app, but the same steps in the same kind of processes.

The job's folder is named after its spec, so that the same command goes on where a killed one was.
"""

import hashlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backend.artifacts.sealing import is_sealed
from backend.artifacts.training_log import STOP
from backend.disk import JOURNAL, PARTIAL, fsync, lock
from backend.errors import AppError, JobError, SpecError
from backend.executors.contract import Listen
from backend.executors.local import Local
from backend.jobs.runner import Run
from backend.processes.marks import marker_prefix, sweep
from backend.settings import Settings
from backend.spec import Spec
from backend.stages import STEPS
from backend.stages.work import artifacts

KEPT_DAYS = 7
"""How long the folder of a run that failed waits for the same command."""


@contextmanager
def finished(spec: Spec, token: str | None, listen: Listen, settings: Settings) -> Iterator[Path]:
    """Run a spec to its end and give the job's folder.

    The folder is removed afterwards; that of a failed run stays where a step is done that need not be done again.

    Raises:
        JobError: A step failed; the run was canceled; or the same command runs already.
    """
    runs = settings.data.resolve() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    _forget(runs)
    folder = runs / hashlib.sha256(identity(spec).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    with lock(folder / "run.lock"):
        sweep(marker_prefix(folder))
        (folder / STOP).unlink(missing_ok=True)
        try:
            with stoppable(folder, listen) as hear:
                Run(folder, spec, Local(folder, settings), settings).go(token, hear)
            yield folder
        except (AppError, KeyboardInterrupt) as e:
            goes_on = spec.resumes and any(
                is_sealed(stage) or (stage / JOURNAL).is_file() for stage in (folder / "stages").glob("*")
            )
            if not goes_on:
                shutil.rmtree(folder, ignore_errors=True)
            elif isinstance(e, AppError):
                made = "".join(f"\n{path}" for path in artifacts(folder))
                text = (
                    f"The same command goes on from where it was; until then, for {KEPT_DAYS} days, what is done stays."
                )
                listen({"event": "log", "text": text + made})
            if isinstance(e, AppError):
                raise
            raise JobError("Canceled." + " The same command goes on from where it was." * goes_on) from e
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def stoppable(folder: Path, listen: Listen) -> Iterator[Listen]:
    """Have the first Ctrl-C during a training end it and keep what was learned; any other Ctrl-C cancels.

    Args:
        folder: Of the job.
        listen: Receives every event, and what Ctrl-C does.

    Yields:
        What is to be told the events, for they say where the job is.
    """
    stoppable_now = False

    def hear(event: dict[str, Any]) -> None:
        nonlocal stoppable_now
        listen(event)
        if event["event"] == "step":
            stoppable_now = STEPS[event["name"]].stoppable
            if stoppable_now:
                listen({"event": "log", "text": "Ctrl-C stops the training and keeps what was learned."})

    def interrupt(*_: Any) -> None:
        if not stoppable_now or (folder / STOP).exists():
            raise KeyboardInterrupt
        (folder / STOP).touch()
        text = "Stopping after this step; what was learned is kept. Press Ctrl-C again to cancel instead."
        listen({"event": "log", "text": text})

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield hear
    finally:
        signal.signal(signal.SIGINT, before)


def identity(spec: Spec) -> str:
    """Say what a run is made from: the spec, and what the files that it names are now."""
    places = [path for named in spec.files() for path in (sorted(named.rglob("*")) if named.is_dir() else [named])]
    looks = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in places if path.exists()]
    return "\n".join([spec.asked, *looks])


def _forget(runs: Path) -> None:
    """Remove what failed runs of long ago left."""
    for folder in runs.iterdir():
        with suppress(JobError, OSError):  # in use, gone meanwhile, or no folder
            if time.time() - folder.stat().st_mtime > KEPT_DAYS * 86400:
                with lock(folder / "run.lock"):
                    shutil.rmtree(folder, ignore_errors=True)


def check_output(output: Path) -> Path:
    """Return the absolute path of a folder that is to be written.

    Raises:
        SpecError: Something is there already, or nothing can be written there.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SpecError(f"Could not write to '{output}'. It is there already: choose another folder with --output.")
    output = output.resolve()
    above = next(place for place in output.parents if place.exists())
    try:
        probe = above / (output.relative_to(above).parts[0] + PARTIAL)
        probe.mkdir()
        probe.rmdir()
    except OSError as e:
        raise SpecError(f"Could not write to '{str(output)[:120]}'. {e.strerror}: choose another folder.") from e
    return output


def move(folder: Path, output: Path) -> None:
    """Move a sealed folder to where the user wants it, whole or not at all, also to another disk.

    Raises:
        SpecError: It cannot be written there; the folder stays where it was.
    """
    draft = output.with_name(output.name + PARTIAL)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        try:
            folder.rename(draft)
        except OSError:  # another disk
            shutil.copytree(folder, draft)
            for path in draft.rglob("*"):
                fsync(path)
        if output.is_dir():
            output.rmdir()
        draft.rename(output)
        fsync(output.parent)
    except OSError as e:
        shutil.rmtree(draft, ignore_errors=True)
        reason = e.strerror or "not every file could be copied"
        raise SpecError(
            f"Could not write to '{output}'. {reason}: free some space there, then give the same command again."
        ) from e


class Terminal:
    """Shows events on standard error: one line written over where it is a terminal, else a line for each tenth."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._open = False
        self._last: tuple[str, int] = ("", -1)

    def hear(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if event["event"] == "progress":
            self._progress(event)
        elif event["event"] in ("log", "step") or event.get("eval_loss") is not None:
            self._end_line()
            sys.stderr.write(_line(event) + "\n")

    def _progress(self, event: dict[str, Any]) -> None:
        share = event["done"] / event["total"] if event["total"] else 1.0
        tenth = (event["phase"], int(share * 10))
        if not self._live and tenth == self._last:
            return
        self._last = tenth
        left = f", {event['seconds_left']:.0f} s left" if event["seconds_left"] else ""
        line = f"{event['phase']} {share:.0%}{left}"
        sys.stderr.write(f"\r\x1b[K{line}" if self._live else line + "\n")
        sys.stderr.flush()
        self._open = self._live
        if share >= 1:
            self._end_line()

    def _end_line(self) -> None:
        if self._open:
            sys.stderr.write("\n")
            self._open = False


def _line(event: dict[str, Any]) -> str:
    """Write an event that has a line of its own."""
    if event["event"] == "log":
        return str(event["text"])
    if event["event"] == "step":
        return f"== {event['name']}"
    return f"step {event['step']}: validation loss {event['eval_loss']:.3f}"
