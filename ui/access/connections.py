"""Connections: how many there may be, and how long one may take to say what it wants, to say it all, and to listen.

uvicorn waits for the head and the body of a request for ever, and lets in whoever comes until no file can be opened.
"""

import asyncio
import resource
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # from the beginning of a connection, or the end of an answer, to the whole head of a request
BODY_SECONDS = 30.0  # between two pieces of a body
LISTEN_SECONDS = 60.0  # in which a browser takes none of what is sent to it
LOOK_SECONDS = 1.0  # between two looks at the clock

MOST = 1000
"""Connections at a time. One page that is open has three."""

_FILES = 4096  # that this process may have open, where the system grants as many
_HEAD_BYTES = 32_768
_AT_ONCE = 64  # connections that are taken before any of them is looked at


class Connection(H11Protocol):
    """One connection, which ends when its client keeps it for nothing, or others need its place."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in; where there is no room, in place of the one that has waited the longest for a request."""
        super().connection_made(transport)
        self.waits_since = self._heard = self.loop.time()
        self._stalled: float | None = None
        self._clock = self.loop.call_later(LOOK_SECONDS, self._look)
        if len(self.connections) > most_connections():
            waiting = [other for other in self.connections if isinstance(other, Connection) and not other.busy]
            min(waiting, key=lambda other: other.waits_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Note that something came."""
        self._heard = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of a body that nobody wants any more."""
        self.waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Note that the client does not take what is sent."""
        self._stalled = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it does again."""
        self._stalled = None
        super().resume_writing()

    @property
    def busy(self) -> bool:
        """Return whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        now = self.loop.time()
        if not self.busy:
            late = now - self.waits_since > HEAD_SECONDS
        elif self.cycle.more_body and not self.flow.read_paused:
            late = now - self._heard > BODY_SECONDS
        else:
            late = self._stalled is not None and now - self._stalled > LISTEN_SECONDS
        if late:
            self.transport.abort()
        else:
            self._clock = self.loop.call_later(LOOK_SECONDS, self._look)


def most_connections() -> int:
    """Return how many connections there may be: jobs and uploads open files, too."""
    return min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)


def allow_files() -> None:
    """Have the system let this process open as many files as it needs, where it grants them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    granted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, granted), hard))


def server(app: ASGIApp, **options: Any) -> uvicorn.Server:
    """Return the web server of an app.

    Args:
        app: What answers.
        options: Of uvicorn.
    """
    return uvicorn.Server(
        uvicorn.Config(app, http=Connection, h11_max_incomplete_event_size=_HEAD_BYTES, backlog=_AT_ONCE, **options)
    )
