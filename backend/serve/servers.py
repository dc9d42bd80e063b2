"""Chat servers: one at a time, in a child process on 127.0.0.1, offline and without a token.

Each has a random port and key of its own.
"""

import contextlib
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Literal

import httpx
from pydantic import Field

from backend.errors import AppError, JobError
from backend.executors.local import Child, environment
from backend.models.machine import gpus
from backend.options import Frozen
from backend.serve.door import KEY, MODEL
from backend.serve.engines import ENGINES, EngineName, choose, kernel
from backend.settings import Settings

LOG = "server.log"

RESTARTS = 1
"""How often a server that has died is started again by itself."""


class Server(Frozen):
    """Where a ready server answers."""

    folder: Path
    engine: str
    base_url: str = Field(description="The OpenAI-compatible root, ending in /v1.")
    key: str = Field(repr=False)

    @property
    def model(self) -> str:
        """The name that requests give."""
        return self.folder.name

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.base_url.removesuffix("/v1").rpartition(":")[2])


class ServerStatus(Frozen):
    """What the page shows."""

    folder: Path | None = None
    state: Literal["stopped", "starting", "ready", "failed"] = "stopped"
    engine: str | None = None
    text: str = "No model is loaded."


class Servers:
    """The one server of this app: opening a folder stops the server of another."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = settings.data.resolve()
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._server: Server | None = None
        self._status = ServerStatus()
        self._used = time.monotonic()
        self._busy = 0
        self._generation = 0

    def open(self, folder: Path, engine: EngineName = "auto", port: int | None = None) -> None:
        """Begin to serve a model folder; status() tells when it is ready. A server of another folder stops first.

        Raises:
            SpecError, HardwareError: The folder cannot be served here.
        """
        folder = folder.resolve()
        name, why = choose(folder, engine)
        if port and not _is_free(port):
            raise JobError(f"Could not serve on port {port}. Something else listens there: choose another port.")
        with self._lock:
            if self._status.folder == folder and self._status.state in ("starting", "ready"):
                return
            self.stop()
            self._generation += 1
            self._status = ServerStatus(
                folder=folder, state="starting", engine=name, text=f"Loading the model with {name} ({why})."
            )
            url = f"http://127.0.0.1:{port or _free_port()}/v1"
            self._begin(Server(folder=folder, engine=name, base_url=url, key=secrets.token_urlsafe(24)), RESTARTS)

    def status(self) -> ServerStatus:
        """Give the state of the server."""
        return self._status

    def current(self) -> Server:
        """Give the ready server.

        Raises:
            JobError: There is none, and why.
        """
        server, status = self._server, self._status
        if server is None:
            raise JobError(status.text + " Choose a model and load it first." * (status.state == "stopped"))
        return server

    def wait(self, seconds: float) -> Server:
        """Wait until the server is ready.

        Raises:
            JobError: It failed or took too long.
        """
        deadline = time.monotonic() + seconds
        while self._status.state == "starting" and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.current()

    @contextlib.contextmanager
    def in_use(self):  # type: ignore[no-untyped-def]
        """Keep the server from idling away while an answer is written."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._used = time.monotonic()

    def stop(self) -> None:
        """Stop the server and everything that it started."""
        self._stop(ServerStatus())

    def _stop(self, status: ServerStatus) -> None:
        with self._lock:
            self._generation += 1
            child, self._child, self._server = self._child, None, None
            self._status = status
        if child:
            child.stop(self._settings.cancel_seconds)

    def _begin(self, server: Server, restarts: int) -> None:
        threading.Thread(target=self._start, args=(server, restarts, self._generation), daemon=True).start()

    def _start(self, server: Server, restarts: int, generation: int) -> None:
        log, engine = self._home / LOG, ENGINES[server.engine]
        command = engine.command(server.folder, server.port, "cuda:0" if gpus() else "cpu")
        env = environment(self._home, online=False) | {KEY: server.key, MODEL: server.model} | engine.environment
        with self._lock:
            if generation != self._generation:
                return
            try:
                log.unlink(missing_ok=True)
                child = self._child = Child(command, env, self._home, log)
            except OSError as e:
                self._end(
                    generation, "failed", f"The server could not be started. {e.strerror}: check the data folder."
                )
                return
        started = time.monotonic()
        try:
            self._until_ready(child, server)
        except AppError as e:
            self._end(generation, "failed", str(e))
            return
        with self._lock:
            if generation != self._generation:
                return
            self._server, self._used = server, time.monotonic()
            said = kernel(log.read_text(encoding="utf-8", errors="replace"))
            text = f"Ready after {time.monotonic() - started:.0f} s, served by {server.engine}. {said}".strip()
            self._status = self._status.model_copy(update={"state": "ready", "text": text})
        if self._died(child, generation):
            self._again(server, restarts, generation)

    def _until_ready(self, child: Child, server: Server) -> None:
        deadline = time.monotonic() + self._settings.server_start_seconds
        while time.monotonic() < deadline:
            if child.wait(0.2) is not None:
                raise JobError(f"The server of '{server.model}' ended while it started: {_last_words(self._home)}")
            with contextlib.suppress(httpx.TransportError):
                # The key is asked for too: what answers on this port may be another program.
                healthy = httpx.get(server.base_url.removesuffix("/v1") + "/health", timeout=5).status_code == 200
                header = {"Authorization": f"Bearer {server.key}"}
                if healthy and server.model in httpx.get(server.base_url + "/models", headers=header, timeout=5).text:
                    return
        raise JobError(
            f"The server of '{server.model}' was not ready within {self._settings.server_start_seconds:.0f} s: choose a"
            " smaller model, or raise WEIGHTSMITH_SERVER_START_SECONDS."
        )

    def _died(self, child: Child, generation: int) -> bool:
        """Watch a ready server: True when it dies; False when it is stopped, also here because nobody used it."""
        while generation == self._generation:
            if child.wait(0.5) is not None:
                return generation == self._generation
            idle = time.monotonic() - self._used
            if not self._busy and idle > self._settings.server_idle_seconds:
                self._end(generation, "stopped", "The model was unloaded because nobody used it: load it again.")
        return False

    def _again(self, server: Server, restarts: int, generation: int) -> None:
        """Start a server that has died once more, with the port and the key that are known, or say that it has."""
        if not restarts:
            self._end(generation, "failed", "The server stopped unexpectedly, and again: load the model again.")
            return
        with self._lock:
            if generation != self._generation:
                return
            text = "The server stopped unexpectedly: it is started again."
            self._stop(ServerStatus(folder=server.folder, state="starting", engine=server.engine, text=text))
            self._begin(server, restarts - 1)

    def _end(self, generation: int, state: Literal["stopped", "failed"], text: str) -> None:
        with self._lock:
            if generation != self._generation:
                return
            folder = self._status.folder if state == "failed" else None
            self._stop(ServerStatus(folder=folder, state=state, text=text))


def _last_words(home: Path) -> str:
    """Give the last error that a server wrote; a Python error's last line begins with the name of its class."""
    lines = (home / LOG).read_text(encoding="utf-8", errors="replace").splitlines() if (home / LOG).is_file() else []
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return f"{said[-1][:300]}. All of it is in {LOG} in the data folder." if said else f"see {LOG} in the data folder."


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
