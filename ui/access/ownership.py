"""Ownership: to whom sessions and uploads belong, which Gradio knows by a name alone."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOST = 100_000  # names that are remembered; Gradio itself keeps 10,000 sessions, and an upload for an hour


class Ownership:
    """Remembers who used a name first."""

    def __init__(self) -> None:
        self._sessions = OrderedDict[str, str]()
        self._files = OrderedDict[tuple[str, str], None]()
        self._coming = dict[object, tuple[str, int]]()

    def enter(self, session: str, who: str | None) -> bool:
        """Return whether a visitor may use a session; it belongs to the first who uses it signed in.

        Args:
            session: The name that the browser drew.
            who: None for an anonymous visitor, whose sessions hold nothing of anybody's.
        """
        if who is not None and session not in self._sessions:
            self._sessions[session] = who
            _limit(self._sessions)
        return self._sessions.get(session) == who

    def add_files(self, paths: Iterable[str], who: str) -> None:
        """Note whose uploads these are; two visitors with the same file have the same path."""
        for path in paths:
            self._files[path, who] = None
        _limit(self._files)

    def has_file(self, path: str, who: str | None) -> bool:
        """Return whether a visitor has uploaded the file that lies there."""
        return who is not None and (path, who) in self._files

    @contextmanager
    def coming(self, size: int, who: str) -> Iterator[Callable[[], None]]:
        """Count an upload of so many bytes while it is on its way; yield what notes that it has arrived."""
        key = object()
        self._coming[key] = who, size

        def arrived() -> None:
            self._coming.pop(key, None)

        try:
            yield arrived
        finally:
            arrived()

    def taken(self, who: str, kept: Iterable[Path]) -> int:
        """Return the bytes that a visitor's uploads take here, those on their way included.

        Args:
            who: The visitor.
            kept: Where more of theirs lies; a file with two names counts once.
        """
        found = dict[tuple[int, int], int]()
        for path in [*kept, *(Path(path) for path, whose in [*self._files] if whose == who)]:
            try:
                status = path.stat()
            except FileNotFoundError:  # deleted since, by Gradio or with the last job that read it
                self._files.pop((str(path), who), None)
            else:
                found[status.st_dev, status.st_ino] = status.st_size
        return sum(found.values()) + sum(size for whose, size in self._coming.values() if whose == who)


def _limit(names: OrderedDict[Key, Value]) -> None:
    while len(names) > _MOST:
        names.popitem(last=False)
