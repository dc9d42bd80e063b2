"""A job in the foreground, for the command line: no table, no app, but the same steps in the same kind of processes.

The job's folder is named after its spec, so that the same command goes on where a killed one was.
"""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.errors import SpecError
from backend.executors.local import marker_prefix, sweep
from backend.jobs.runner import Listen, Run
from backend.jobs.specs import Spec
from backend.jobs.supervisor import lock
from backend.models.artifacts import PARTIAL
from backend.settings import Settings


@contextmanager
def finished(spec: Spec, token: str | None, listen: Listen, settings: Settings) -> Iterator[Path]:
    """Run a spec to its end and give the job's folder; the folder is removed afterwards, unless the run failed.

    Raises:
        JobError: A step failed; or the same command runs already.
    """
    name = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]
    folder = settings.data.resolve() / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "run.lock"):
        sweep(marker_prefix(folder))
        Run(folder, spec, folder, settings).go(token, listen)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def check_output(output: Path) -> Path:
    """Give the absolute path of a folder that is to be written.

    Raises:
        SpecError: Something is there already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SpecError(f"Could not write to '{output}'. It is there already: choose another folder.")
    return output.resolve()


def move(folder: Path, output: Path) -> None:
    """Move a sealed folder to where the user wants it, whole or not at all, also to another disk."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(output.name + PARTIAL)
    shutil.rmtree(draft, ignore_errors=True)
    shutil.move(folder, draft)
    if output.is_dir():
        output.rmdir()
    draft.rename(output)


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
        elif event["event"] in ("log", "step"):
            self._end_line()
            sys.stderr.write((event["text"] if event["event"] == "log" else f"== {event['name']}") + "\n")

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
