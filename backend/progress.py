"""How work tells its progress: one event a line, whoever reads it."""

import time
from collections.abc import Callable
from typing import Any

Emit = Callable[[dict[str, Any]], None]

_INTERVAL = 0.2  # seconds between two progress events of one phase; more would only fill the event file


class Report:
    """What work says while it runs.

    Args:
        emit: Takes one JSON-able event: `{"event": "progress", "phase", "done", "total", "unit", "speed",
            "seconds_left"}`, `{"event": "log", "text"}` or `{"event": "metrics", …}`.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._phase = ""
        self._started = 0.0
        self._last = 0.0
        self._first = 0.0  # done before this run, by one that was interrupted
        self.warnings: list[str] = []

    def progress(self, phase: str, done: float, total: float, unit: str) -> None:
        """Tell how far a phase is.

        Args:
            phase: What is being done, as a person reads it: "quantizing".
            done: Units done so far, from 0 to `total`.
            total: Units in all.
            unit: "bytes", "tokens", "layers", …
        """
        now = time.monotonic()
        if phase != self._phase:
            self._phase = phase
            self._started = now
            self._last = 0.0
            self._first = done
        if done < total and now - self._last < _INTERVAL:
            return
        self._last = now
        seconds = now - self._started
        speed = (done - self._first) / seconds if seconds > 0 and done > self._first else None
        left = (total - done) / speed if speed else None
        self._emit(
            {
                "event": "progress",
                "phase": phase,
                "done": done,
                "total": total,
                "unit": unit,
                "speed": speed,
                "seconds_left": left,
            }
        )

    def log(self, text: str) -> None:
        """Say one sentence for the log."""
        self._emit({"event": "log", "text": text})

    def relay(self, event: dict[str, Any]) -> None:
        """Pass on what a process that does a part of the work has said."""
        self._emit(event)

    def metrics(self, figures: dict[str, Any]) -> None:
        """Tell what was measured at a step of a training."""
        self._emit({"event": "metrics", **figures})

    def warn(self, text: str) -> None:
        """Say what whoever uses the result must know; it stays with the artifact."""
        self.warnings.append(text)
        self.log("Warning: " + text)


def silent() -> Report:
    """A report that nobody reads."""
    return Report(lambda event: None)
