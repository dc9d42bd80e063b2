"""Runs that end as if killed, at a point that a test chooses."""

from backend.weights.output import Resumable


class Killed(BaseException):
    """Ends a run as a signal would, between two blocks."""


class Mortal(Resumable):
    """A folder whose run is killed when it has finished so many parts."""

    def __init__(self, folder, parts):
        super().__init__(folder)
        self._parts = parts

    def mark(self, part, digest):
        super().mark(part, digest)
        self._parts -= 1
        if self._parts == 0:
            raise Killed
