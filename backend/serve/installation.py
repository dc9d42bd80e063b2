"""The installation of an engine that is not part of the app's own environment.

`python -m backend.serve.installation ENGINE [gpu|cpu]` installs one, for this machine or for one with
the hardware that is named: an image is built where there is no GPU.
"""

import argparse
import sys
import threading
from typing import Any

from backend.errors import AppError
from backend.progress import Report
from backend.serve.engine import Engine
from backend.serve.engines import ENGINES


class Installation:
    """The installation of an engine in a thread of its own, for who watches it.

    Args:
        engine: One that can be installed.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.install
        self._title = engine.title
        self._install = engine.install
        self._thread: threading.Thread | None = None
        self._said = f"{engine.title} serves this model and is not installed yet: {self._install.cost}."

    @property
    def installs(self) -> bool:
        """Return whether it is going on."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def text(self) -> str:
        """Return how it stands."""
        return self._said

    def begin(self) -> None:
        """Begin, unless it has begun."""
        if not self.installs:
            self._said = f"Installing {self._title}."
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        def hear(event: dict[str, Any]) -> None:
            self._said = f"Installing {self._title}: {event['text'][:120]}"

        try:
            self._install.run(Report(hear), None)
            self._said = f"{self._title} is installed: load the model."
        except (AppError, OSError) as e:
            self._said = str(e)


def main() -> None:
    """Install an engine from the command line."""

    def say(event: dict[str, Any]) -> None:
        sys.stderr.write(f"{event['text']}\n")

    installs = {name: engine.install for name, engine in ENGINES.items() if engine.install}
    parser = argparse.ArgumentParser(prog="python -m backend.serve.installation")
    parser.add_argument("engine", choices=installs)
    parser.add_argument("hardware", nargs="?", choices=("gpu", "cpu"))
    given = parser.parse_args()
    try:
        installs[given.engine].run(Report(say), given.hardware)
    except AppError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
