"""A server in the place of vLLM's, behind the guard, that answers with one token.

`python -m tests.support.compared_engine PORT ADAPTER` gives that token another log-probability with the adapter than
with the base model, by a float's last bits; with "" for the adapter it ignores adapters.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backend.serve.guard import Guard


async def health(request: Request) -> Response:
    return Response()


async def answer(request: Request) -> Response:
    asked = await request.json()
    likely = -1.5000001 if asked["model"] == sys.argv[2] else -1.5
    choice = {"logprobs": {"tokens": ["a"], "token_logprobs": [likely]}, "prompt_token_ids": [1], "token_ids": [2]}
    return JSONResponse({"choices": [choice]})


if __name__ == "__main__":
    routes = [Route("/health", health)]
    routes += [Route(f"/v1/{path}", answer, methods=["POST"]) for path in ("completions", "chat/completions")]
    uvicorn.run(Guard(Starlette(routes=routes)), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
