"""The servers of this app: several where the memory allows it, else one in the place of another."""

import contextlib
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from backend.errors import JobError
from backend.machine.hardware import available_bytes, gpu_memory_bytes, gpus
from backend.model_folder import is_adapter
from backend.processes.marks import marked, marker_prefix
from backend.serve.engines import AUTO, ENGINES, EngineName, choose
from backend.serve.server import Server, ServerStatus, Serving
from backend.settings import Settings

LOGS = "servers"


class Servers:
    """What is served, by its folder; all of it ends with stop().

    Args:
        settings: Of the owner.
        base_of: Gives the folder of the model that an adapter was trained on, where it is known.
        gpu_is_used: Whether a job computes on the GPU, or waits to; a job would not find the memory that it was
            promised beside a server.
    """

    def __init__(
        self,
        settings: Settings,
        base_of: Callable[[Path], Path | None] = lambda folder: None,
        gpu_is_used: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._base_of = base_of
        self._gpu_is_used = gpu_is_used
        self._lock = threading.RLock()
        self._all: dict[Path, Serving] = {}

    def open(self, folder: Path, engine: EngineName = AUTO, port: int | None = None, compared: bool = False) -> None:
        """Begin to serve a model folder; status() tells when it is ready.

        Where the memory does not do for it beside others, those that were used the longest ago stop first.

        Args:
            folder: Of a model, or of an adapter.
            engine: What serves it.
            port: Where it listens; None: where nothing else does.
            compared: Whether the base model of an adapter answers beside it, for the check, where the engine can.

        Raises:
            SpecError, HardwareError: The folder cannot be served here.
            JobError: The port is taken, a job uses the GPU, or others that answer just now leave no memory.
        """
        folder = folder.resolve()
        base = self._base_of(folder) if is_adapter(folder) else None
        name, why = choose(folder, engine, base)
        if port and not _is_free(port):
            raise JobError(f"Could not serve on port {port}. Something else listens there: choose another port.")
        with self._lock:
            if self.status(folder).live:
                return
            if gpus() and self._gpu_is_used():
                raise JobError("A job is using the GPU, or waits for it: wait until it has ended, or cancel it.")
            self._make_room(base or folder, name)
            url = f"http://127.0.0.1:{port or _free_port()}/v1"
            beside = ENGINES[name].beside if compared and base else None
            key = secrets.token_urlsafe(24)
            server = Server(folder=folder, engine=name, base=base, base_url=url, key=key, beside=beside)
            log = self._settings.data.resolve() / LOGS / f"{hashlib.sha256(bytes(folder)).hexdigest()[:12]}.log"
            self._all[folder] = Serving(server, why, self._settings, log)

    def live(self) -> list[Path]:
        """Return the folders whose servers take memory."""
        with self._lock:
            return [folder for folder, serving in self._all.items() if serving.status.live]

    def status(self, folder: Path) -> ServerStatus:
        """Return how the server of a folder stands."""
        serving = self._all.get(folder.resolve())
        return serving.status if serving else ServerStatus()

    def current(self, folder: Path) -> Server:
        """Return the ready server of a folder.

        Raises:
            JobError: There is none, and why.
        """
        return self._of(folder).current()

    def wait(self, folder: Path, seconds: float) -> Server:
        """Wait until the server of a folder is ready.

        Raises:
            JobError: It failed or took too long.
        """
        serving, deadline = self._of(folder), time.monotonic() + seconds
        while serving.status.state == "starting" and time.monotonic() < deadline:
            time.sleep(0.1)
        return serving.current()

    def memory_bytes(self, folder: Path) -> int | None:
        """Return the memory of the server of a folder: of the GPU where there is one; None where that is not told."""
        if gpus():  # it has one server at a time, and no job beside it
            return gpu_memory_bytes(set(marked(marker_prefix(self._settings.data))))
        return self._of(folder).memory_bytes()

    @contextlib.contextmanager
    def in_use(self, folder: Path) -> Iterator[None]:
        """Keep the server of a folder while an answer is written."""
        with self._of(folder).in_use():
            yield

    def stop(self, folder: Path | None = None) -> None:
        """Stop the server of a folder, or all of them, with everything that they started."""
        with self._lock:
            wanted = [self._all.pop(folder.resolve(), None)] if folder else [*self._all.values()]
            self._all = self._all if folder else {}
        with ThreadPoolExecutor() as together:  # each may take its time to end
            list(together.map(Serving.stop, filter(None, wanted)))

    def _of(self, folder: Path) -> Serving:
        serving = self._all.get(folder.resolve())
        if serving is None:
            raise JobError("The model is not loaded: load it first.")
        return serving

    def _make_room(self, folder: Path, engine: str) -> None:
        """Stop servers until there is memory for one more; a GPU has room for one.

        None is named: it may be another visitor's, of a private model.
        """
        needed = ENGINES[engine].weights(folder) + ENGINES[engine].overhead
        for other in sorted(self.live(), key=lambda other: self._all[other].used):
            if not gpus() and needed <= available_bytes():
                return
            if self._all[other].busy:
                raise JobError("Another model is answering, and there is no memory for two: wait until it has.")
            self._all[other].stop("Unloaded to make room for another model: load it again.")


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
