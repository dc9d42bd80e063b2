"""The course of a training, as files tell it while it runs: figures, answers, and the file that asks it to end."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from backend.artifacts.artifact import METRICS, SAMPLES
from backend.disk import read_lines

STOP = "stop"
"""File in the job's folder: the training ends after the step that it is at, and keeps what was learned."""


class Course(NamedTuple):
    """How a training went so far."""

    figures: list[dict[str, Any]]  # lines of metrics.jsonl
    answers: list[dict[str, Any]]  # lines of samples.jsonl: step, prompt, answer

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return a figure by step, where it is a finite number; of two at one step the first.

        The last step is measured again with the checkpoint that is kept, which may be another one.
        """
        found: dict[int, float] = {}
        for line in self.figures:
            if isinstance(value := line.get(name), int | float) and math.isfinite(value):
                found.setdefault(line["step"], value)
        return sorted(found.items())

    def last(self, name: str) -> float | None:
        """Return the newest value of a figure."""
        return next((line[name] for line in reversed(self.figures) if line.get(name) is not None), None)

    @property
    def resumed(self) -> int | None:
        """The step after which it last went on from a checkpoint."""
        return next((line["step"] for line in reversed(self.figures) if line.get("resumed")), None)


def read_course(folder: Path) -> Course:
    """Read what a training has written.

    Args:
        folder: Of its step, sealed or not.
    """
    answers = [line for line in of_steps(folder / SAMPLES) if {"prompt", "answer"} <= line.keys()]
    return Course(of_steps(folder / METRICS), answers)


def of_steps(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that say of which step they are."""
    return [line for line in read_lines(path) if isinstance(line.get("step"), int)]
