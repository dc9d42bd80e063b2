"""`serve`: a model as an endpoint."""

import contextlib
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import Field

from backend.cli.command import Argument, Command
from backend.cli.names import admitted, existing, fetched
from backend.serve.engines import AUTO, EngineName
from backend.serve.server import Server
from backend.serve.servers import Servers
from backend.settings import load_settings


class _Serve(Command):
    folder: Argument[Path] = Field(description="The folder of the model.")
    port: int | None = Field(None, ge=1, le=65535, description="The port; by default a free one.")
    base_model: str | None = Field(None, description="Of an adapter: the model that it was trained on.")
    engine: EngineName = Field(AUTO, description="What serves the model.")

    def run(self) -> None:
        with (
            serving(self.folder, self.base_model, self.engine, self.port) as (server, servers),
            servers.in_use(self.folder),
        ):
            data = {"base_url": server.base_url, "api_key": server.key, "model": server.model, "engine": server.engine}
            self.say(data, "\n".join(f"{name}: {value}" for name, value in data.items()))
            with contextlib.suppress(KeyboardInterrupt):
                while servers.status(self.folder).live:
                    threading.Event().wait(0.5)
                servers.current(self.folder)


@contextlib.contextmanager
def serving(folder: Path, base_model: str | None, engine: EngineName, port: int | None = None) -> Any:
    """Serve a folder for as long as the block lasts; that of an adapter on its base model."""
    settings = load_settings().writable()
    base = fetched(base_model, settings) if base_model else None
    servers = Servers(settings, lambda _: base)
    servers.open(existing(folder) if base else admitted(folder), engine, port)
    sys.stderr.write(f"Loading '{folder.name}', which takes some seconds.\n")
    try:
        server: Server = servers.wait(folder, settings.server_start_seconds)
        yield server, servers
    finally:
        servers.stop()


COMMAND = _Serve
