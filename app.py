"""The studio's entry: settings, supervisor, servers, page; then one web server until it is told to stop."""

import os
import signal
import socket
import sys
from types import FrameType

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
if os.getenv("SPACE_ID"):
    # Gradio believes that it is on a Space only when this is set; a Docker Space does not set it.
    os.environ.setdefault("SYSTEM", "spaces")

import gradio as gr
import uvicorn
from fastapi import FastAPI

from backend.errors import AppError, JobError
from backend.jobs.supervisor import Supervisor
from backend.serve.servers import Servers
from backend.settings import Settings
from ui.headers import Headers
from ui.page import build_page
from ui.studio import Studio
from ui.theme import CSS, theme


def web_app(studio: Studio) -> FastAPI:
    """Build the page and mount it; nothing in the data folder can be fetched by its path."""
    settings = studio.settings
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Headers)
    return gr.mount_gradio_app(
        app,
        build_page(studio),
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[str(settings.data.resolve())],
        max_file_size=settings.max_upload_bytes,
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css_paths=[CSS],
    )


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


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def serve(settings: Settings) -> None:
    """Run the studio until SIGTERM or SIGINT; jobs and servers are stopped with it.

    Raises:
        JobError: The port or the data folder is in use.
    """
    # On a Space the port is reached from outside its container.
    host = "0.0.0.0" if settings.on_space else settings.host
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)  # uvicorn handles both while it runs, and raises them again afterwards
    with listen(host, settings.port) as port:
        supervisor, servers = Supervisor(settings), Servers(settings)
        supervisor.start()
        try:
            app = web_app(Studio(settings, supervisor, servers))
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
            sys.stdout.write(f"Weightsmith runs on http://{settings.host}:{settings.port}\n")
            sys.stdout.flush()
            uvicorn.Server(config).run(sockets=[port])
        finally:
            servers.stop()
            supervisor.stop()


if __name__ == "__main__":
    try:
        serve(Settings())
    except AppError as e:
        sys.exit(f"error: {e}")
