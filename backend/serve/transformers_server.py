"""`transformers serve` behind a key: run as `python -m backend.serve.transformers_server FOLDER PORT DEVICE`.

transformers' server has no key of its own, so one thin ASGI layer asks for it. The key comes in the environment, where
other users of the machine cannot read it.
"""

import json
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

KEY = "WEIGHTSMITH_SERVER_KEY"
OPEN = ("/health",)

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class RequireKey:
    """Answers 401 to every request without `Authorization: Bearer <key>`, but for the health check."""

    def __init__(self, app: App, key: str) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass the request on, or refuse it."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] != "http" or scope["path"] in OPEN or secrets.compare_digest(given, self._wanted):
            await self._app(scope, receive, send)
            return
        body = json.dumps({"error": {"message": "The key is missing or wrong.", "type": "authentication"}}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Load the model, then answer until SIGTERM."""
    from transformers.cli.serve import Serve

    folder, port, device = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # transformers reads an "@" in a model's name as a revision; from its parent, the folder's bare name will do.
    os.chdir(folder.parent)

    class KeyedServe(Serve):  # type: ignore[misc]
        def start_server(self) -> None:
            self.server.config.app = RequireKey(self.server.config.app, os.environ[KEY])
            self.server.run()

    KeyedServe(force_model=folder.name, host="127.0.0.1", port=port, device=device, non_blocking=True)


if __name__ == "__main__":
    main()
