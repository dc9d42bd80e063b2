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


class Door:
    """Asks for the key, and names the one model; transformers' own list names what lies in a download cache.

    Args:
        app: What answers everything else.
        key: Wanted as `Authorization: Bearer <key>` by every request but the health check.
        model: The name that requests give.
    """

    def __init__(self, app: App, key: str, model: str) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode()
        listed = {"id": model, "object": "model", "created": 0, "owned_by": "weightsmith"}
        self._models = {"object": "list", "data": [listed]}

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer, refuse, or pass the request on."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
        elif not secrets.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._wanted):
            error = {"message": "The key is missing or wrong.", "type": "authentication"}
            await self._answer(401, {"error": error}, send)
        elif (scope["method"], scope["path"]) == ("GET", "/v1/models"):
            await self._answer(200, self._models, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, status: int, body: dict[str, Any], send: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def main() -> None:
    """Load the model, then answer until SIGTERM."""
    from transformers.cli.serve import Serve

    folder, port, device = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # transformers reads an "@" in a model's name as a revision; from its parent, the folder's bare name will do.
    os.chdir(folder.parent)

    class KeyedServe(Serve):  # type: ignore[misc]
        def start_server(self) -> None:
            self.server.config.app = Door(self.server.config.app, os.environ[KEY], folder.name)
            self.server.run()

    KeyedServe(force_model=folder.name, host="127.0.0.1", port=port, device=device, non_blocking=True)


if __name__ == "__main__":
    main()
