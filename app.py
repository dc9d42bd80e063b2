"""The studio's entry: settings, supervisor, servers, page; then one web server until it is told to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# After each event Gradio makes a table of the last 10,000, for a page that is closed here.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**12))
if os.getenv("SPACE_ID"):
    # Gradio believes that it is on a Space only when this is set; a Docker Space does not set it.
    os.environ.setdefault("SYSTEM", "spaces")

from backend.disk import scratch
from backend.errors import AppError, JobError
from backend.jobs.supervisor import Supervisor
from backend.serve.servers import Servers
from backend.settings import Settings, load_settings
from backend.stages.estimate import measured_speeds
from backend.stages.work import trained_on
from ui.access.connections import allow_files, server
from ui.access.launch import Launch
from ui.studio import Studio
from ui.web import web_app


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else is started.

    Raises:
        JobError: Somebody else has it.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise JobError(
            f"Could not listen on '{host}:{port}'. {e.strerror}: set WEIGHTSMITH_PORT to another port, or stop what"
            " uses this one."
        ) from e


def _worth_logging(record: logging.LogRecord) -> bool:
    """Tell whether a line of uvicorn's is news; that stopping cut off the open pages is none."""
    cut_off = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_off and "graceful shutdown exceeded" not in str(record.msg)


@contextlib.contextmanager
def _room_for_uploads() -> Iterator[None]:
    """Yield Gradio a folder of this process alone: of its usual one, all apps', it never deletes all that it wrote."""
    place = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    with scratch(place) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        yield


def serve(settings: Settings) -> None:
    """Run the studio until SIGTERM or SIGINT; jobs and servers are stopped with it.

    Raises:
        JobError: The port or the data folder is in use.
    """
    host = "0.0.0.0" if settings.on_space else settings.host  # a Space is reached from outside its container
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            signum, lambda *_: sys.exit(0)
        )  # uvicorn handles both while it runs, and raises them again afterwards
    allow_files()
    with listen(host, settings.port) as port, _room_for_uploads():
        supervisor = Supervisor(settings)
        servers = Servers(settings, trained_on, supervisor.uses_gpu)
        supervisor.start()
        # the page need not wait for it
        threading.Thread(target=measured_speeds, args=(settings.data,), daemon=True).start()
        try:
            launch = None if settings.on_space else Launch(settings)
            app = web_app(Studio(settings, supervisor, servers), launch)
            logging.getLogger("uvicorn.error").addFilter(_worth_logging)
            address = launch.address if launch else f"https://{os.environ.get('SPACE_HOST', '')}"
            sys.stdout.write(f"Weightsmith runs on {address}\n")
            sys.stdout.flush()
            server(app, log_level="warning", timeout_graceful_shutdown=2).run(sockets=[port])
        finally:
            servers.stop()
            supervisor.stop()


if __name__ == "__main__":
    try:
        serve(load_settings().guarded().writable())
    except AppError as e:
        sys.exit(f"error: {e}")
