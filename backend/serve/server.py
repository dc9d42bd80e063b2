"""One chat server: a child process on 127.0.0.1, offline and without a token, with a port and a key of its own."""

import contextlib
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from backend.disk import scratch
from backend.errors import AppError, JobError
from backend.machine.hardware import gpus
from backend.options import Frozen
from backend.processes.child import Child, environment
from backend.serve.engine import sees
from backend.serve.engines import ENGINES
from backend.serve.guard import BASE, KEY, MODEL, PICTURES
from backend.settings import Settings

if TYPE_CHECKING:
    import httpx

RESTARTS = 1
"""How often a server that has died is started again by itself."""

_ENGINE_IS_DEAD = 503
_KILLED = 128 + signal.SIGKILL


class Server(Frozen):
    """Where a ready server answers."""

    folder: Path
    engine: str
    base: Path | None = Field(None, description="Of an adapter: the folder of its base model.")
    base_url: str = Field(description="The OpenAI-compatible root, ending in /v1.")
    key: str = Field(repr=False)
    beside: str | None = Field(None, description="What requests call an adapter's base model, where both are compared.")

    @property
    def model(self) -> str:
        """The name that requests give."""
        return self.folder.name

    @property
    def sees(self) -> bool:
        """Return whether the model takes pictures."""
        return sees(self.folder, self.base)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.base_url.removesuffix("/v1").rpartition(":")[2])


class ServerStatus(Frozen):
    """What the page shows."""

    state: Literal["stopped", "starting", "ready", "failed"] = "stopped"
    engine: str | None = None
    text: str = "The model is not loaded."

    @property
    def live(self) -> bool:
        """Return whether it takes memory."""
        return self.state in ("starting", "ready")


class Serving:
    """A server from its start to its end; it is started again once when it dies.

    Args:
        server: What is served, and where.
        why: The engine was chosen.
        settings: How long it may take to start, and lie idle.
        log: Where it writes.
    """

    def __init__(self, server: Server, why: str, settings: Settings, log: Path) -> None:
        self._server = server
        self._settings = settings
        self._log = log
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._status = ServerStatus(
            state="starting", engine=server.engine, text=f"Loading the model with {server.engine} ({why})."
        )
        self._busy = 0
        self.used = time.monotonic()
        threading.Thread(target=self._live, daemon=True).start()

    @property
    def status(self) -> ServerStatus:
        """How it stands."""
        return self._status

    @property
    def busy(self) -> bool:
        """Return whether it is answering."""
        return self._busy > 0

    def memory_bytes(self) -> int:
        """Return the memory of its processes; that of a GPU is not among it."""
        with self._lock:
            return self._child.resident_bytes() if self._child else 0

    def current(self) -> Server:
        """Return where it answers.

        Raises:
            JobError: It is not ready, and why.
        """
        if self._status.state != "ready":
            raise JobError(self._status.text)
        return self._server

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it from idling away while an answer is written."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
            self.used = time.monotonic()

    def stop(self, text: str = "The model is not loaded.") -> None:
        """Stop it with everything that it started.

        Args:
            text: Why, for who wants to use it.
        """
        self._end("stopped", text)

    def _live(self) -> None:
        """Start it, watch it, and start it again once, with the port and the key that are known."""
        try:
            with scratch(Path(tempfile.gettempdir())) as sockets:
                for left in range(RESTARTS, -1, -1):
                    if not self._start(sockets) or not self._died():
                        return
                    if left:
                        self._set("starting", "The server stopped unexpectedly: it is started again.")
            self._end("failed", "The server stopped unexpectedly, and again: load the model again.")
        except OSError as e:
            words = f"The server could not be started. {e.strerror}: check the disks of the data folder and of"
            self._end("failed", f"{words} {tempfile.gettempdir()}.")

    def _start(self, sockets: Path) -> bool:
        """Start it; False where it does not get ready, or is stopped meanwhile.

        Args:
            sockets: An empty folder with a short name, in which an engine's processes may meet.
        """
        engine = ENGINES[self._server.engine]
        server = self._server
        home = self._settings.data.resolve()
        command = engine.command(server.folder, server.port, "cuda:0" if gpus() else "cpu", server.base)
        env = environment(home, online=False) | {KEY: server.key, MODEL: server.model}
        env |= engine.environment(sockets) | ({PICTURES: "1"} if server.sees else {})
        env |= {BASE: server.beside} if server.beside else {}
        started = time.monotonic()
        try:
            with self._lock:
                if not self._status.live:
                    return False
                self._log.parent.mkdir(exist_ok=True)
                self._log.unlink(missing_ok=True)
                child = self._child = Child(command, env, home, self._log)
            self._until_ready(child)
        except AppError as e:
            self._end("failed", str(e))
            return False
        self.used = time.monotonic()
        text = f"Ready after {self.used - started:.0f} s, served by {server.engine}."
        return self._set("ready", f"{text} {engine.remark(self._written())}".strip())

    def _until_ready(self, child: Child) -> None:
        import httpx

        server, seconds = self._server, self._settings.server_start_seconds
        deadline, header = time.monotonic() + seconds, {"Authorization": f"Bearer {server.key}"}
        while time.monotonic() < deadline:
            if (code := child.wait(0.2)) is not None or (health := self._health()) == _ENGINE_IS_DEAD:
                raise JobError(f"The server of '{server.model}' ended while it started: {self._last_words(code)}")
            with contextlib.suppress(httpx.TransportError):
                # The key is asked for too: what answers on this port may be another program.
                if health == 200 and server.model in _get(server.base_url + "/models", header).text:
                    return
        raise JobError(
            f"The server of '{server.model}' was not ready within {seconds:.0f} s: choose a smaller model, or raise"
            " WEIGHTSMITH_SERVER_START_SECONDS."
        )

    def _died(self) -> bool:
        """Watch it: True when it dies; False when it is stopped, also here because nobody used it."""
        child = self._child
        assert child
        while self._status.live:
            # vLLM outlives its engine: for some seconds, and where it has not been asked yet for good
            if child.wait(1) is not None or self._health() == _ENGINE_IS_DEAD:
                child.stop(0)
                return self._status.live
            if not self._busy and time.monotonic() - self.used > self._settings.server_idle_seconds:
                self.stop("The model was unloaded because nobody used it: load it again.")
        return False

    def _health(self) -> int | None:
        """Return the status of its health; None where it does not answer."""

        import httpx

        with contextlib.suppress(httpx.TransportError):
            return _get(self._server.base_url.removesuffix("/v1") + "/health").status_code
        return None

    def _set(self, state: Literal["starting", "ready"], text: str) -> bool:
        """Say how it stands, unless it has been stopped."""
        with self._lock:
            if self._status.live:
                self._status = self._status.model_copy(update={"state": state, "text": text})
            return self._status.live

    def _end(self, state: Literal["stopped", "failed"], text: str) -> None:
        with self._lock:
            if not self._status.live:
                return
            child, self._child = self._child, None
            self._status = self._status.model_copy(update={"state": state, "text": text})
        if child:
            child.stop(self._settings.cancel_seconds)

    def _written(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.is_file() else ""

    def _last_words(self, code: int | None) -> str:
        """Return the last error that it wrote; a Python error's last line begins with the name of its class."""
        place = f"{self._log.parent.name}/{self._log.name} in the data folder"
        if code == _KILLED:
            return "it was killed, as Linux does when memory runs out. Unload other models, or choose a smaller one."
        said = [line for line in self._written().splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
        ours = said[-1].partition("backend.errors.SpecError: ")[2] if said else ""  # a sentence already
        if ours:
            return f"{ours} All of it is in {place}."
        return f"{said[-1][:300]}. All of it is in {place}." if said else f"see {place}."


def _get(url: str, headers: Mapping[str, str] | None = None) -> "httpx.Response":
    """Ask on loopback, where no proxy leads and no certificate counts: to read those takes 20 ms."""

    import httpx

    return httpx.get(url, headers=headers, timeout=5, trust_env=False, verify=False)
