"""A toy engine: a server that answers every question with the same words."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from backend.serve.engine import PLAIN, CardLines, Engine, Refusal, Served, Shown
from backend.serve.guard import Guard

ANSWER = ("Toys", " say", " this", ".")


def _serves(served: Served) -> Refusal | None:
    if served.method == PLAIN:
        return None
    return Refusal(f"Toy does not serve {served.method}, which '{served.folder.name}' holds")


def _command(folder: Path, port: int, device: str, base: Path | None) -> list[str]:
    return [sys.executable, "-c", "from backend.serve.engines import toy; toy.main()", str(port)]


def _card(shown: Shown) -> CardLines | None:
    if not shown.config:
        return None
    return CardLines("[Toy](https://toy.example)", f"toy serve {shown.model_id}")


ENGINE = Engine(
    name="toy",
    title="Toy",
    merit="the smallest for {}",
    overhead=50_000_000,
    start_seconds=1.0,
    serves=_serves,
    command=_command,
    card=_card,
)


def main() -> None:
    """Answer until SIGTERM."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    async def health(request: Request) -> Response:
        return Response()

    async def chat(request: Request) -> Response:
        return StreamingResponse(_events(), media_type="text/event-stream")

    routes = [Route("/health", health), Route("/v1/chat/completions", chat, methods=["POST"])]
    uvicorn.run(Guard(Starlette(routes=routes)), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


def _events() -> Iterator[str]:
    common = {"id": "1", "object": "chat.completion.chunk", "model": "toy", "created": 1}
    for word in ANSWER:
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        yield f"data: {json.dumps({**common, 'choices': [choice]})}\n\n"
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield f"data: {json.dumps({**common, 'choices': [last]})}\n\ndata: [DONE]\n\n"
