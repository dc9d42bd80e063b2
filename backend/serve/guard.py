"""The guard of a chat server: whoever has the key may list the one model and ask it, with the fields named here.

It stands in front of every engine. Theirs let in more: a chat template in a request is a program, guided decoding can
take a server for minutes, a picture's address is fetched, and vLLM's other routes ask for no key. Nothing but Python's
own library is imported: this runs in vLLM's environment too.

Log-probabilities are not among those fields. A server that the check has started lets one request through that has
them: of COMPARED's form, to an adapter or to the base model beside it. Servers for the chat never do.
"""

import json
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from backend.serve import pictures

KEY, MODEL = "VLLM_API_KEY", "WEIGHTSMITH_SERVER_MODEL"
"""Variables with the key, which vLLM asks for too, and the model: other users cannot read a process's environment."""

PICTURES = "WEIGHTSMITH_SERVER_PICTURES"
"""The variable that is set where the model reads pictures."""

BASE = "WEIGHTSMITH_SERVER_BASE"
"""The variable with the name of an adapter's base model, which is set where the check compares the two."""

COMPARED = {"max_tokens": 1, "temperature": 0, "logprobs": 0}
"""What a request of the check says beside model and prompt: one token, and the log-probability of that one alone."""

MOST = 4_000_000
"""Bytes of a request without its pictures."""

MOST_WITH_PICTURES = MOST + pictures.MOST * pictures.BYTES * 4 // 3

MAX_TOKENS = 32_768

_ROUTES = {("POST", "/v1/chat/completions"): "messages", ("POST", "/v1/completions"): "prompt"}
_FIELDS = {
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
    "seed", "stop", "ignore_eos", "return_token_ids",
}  # fmt: skip
_ROLES = ("system", "user", "assistant")
_PICTURE = "image_url"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI layer; the key and the model's name come from the environment.

    Args:
        app: What answers.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._wanted = f"Bearer {os.environ[KEY]}".encode()
        self._model = os.environ[MODEL]
        self._base = os.environ.get(BASE)
        self._sees = bool(os.environ.get(PICTURES))
        self._most = MOST_WITH_PICTURES if self._sees else MOST

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass the request on."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] == "/health"):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif not secrets.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._wanted):
            await _refuse(401, "The key is missing or wrong.", send)
        elif (scope["method"], scope["path"]) == ("GET", "/v1/models"):
            listed = {"id": self._model, "object": "model", "created": 0, "owned_by": "weightsmith"}
            await _answer(200, {"object": "list", "data": [listed]}, send)
        elif asked := _ROUTES.get((scope["method"], scope["path"])):
            await self._ask(asked, scope, receive, send)
        else:
            await _refuse(404, "There are /v1/models, /v1/chat/completions and /v1/completions.", send)

    async def _ask(self, asked: str, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, if it holds what is allowed and nothing else."""
        taken, more = bytearray(), True
        while more and len(taken) <= self._most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            taken += message.get("body", b"")
            more = message.get("more_body", False)
        if len(taken) > self._most:
            await _refuse(413, f"The request has more than {self._most // 10**6} MB: shorten the conversation.", send)
            return
        body = bytes(taken)
        if fault := wrong(body, asked, self._model, self._sees, self._base):
            await _refuse(400, fault, send)
            return
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return given.pop() if given else await receive()

        await self._app(scope, again, send)


def wrong(body: bytes, asked: str, model: str, sees: bool = False, base: str | None = None) -> str | None:
    """Say what is wrong with a request, in a sentence; None where nothing is.

    Args:
        body: As it came.
        asked: The field that holds what is asked: messages, or prompt.
        model: The name that requests give.
        sees: Whether the model reads pictures.
        base: The name of an adapter's base model, where the check compares the two.
    """
    try:
        request = json.loads(body)
        json.dumps(request, ensure_ascii=False).encode()  # no tokenizer takes half of a letter
    except (ValueError, RecursionError):
        return "The request is no JSON."
    if not isinstance(request, dict):
        return "The request is no JSON object."
    if base and asked == "prompt" and all(request.get(name) == value for name, value in COMPARED.items()):
        request = {name: value for name, value in request.items() if name not in COMPARED}
        model = base if request.get("model") == base else model
    unknown = sorted(request.keys() - _FIELDS - {asked})
    if unknown:
        return f"'{unknown[0][:60]}' is not taken here: leave it out. Taken are {', '.join(sorted(_FIELDS | {asked}))}."
    if request.get("model", model) != model:
        return f"There is one model here, '{model}': name it, or leave model out."
    for name in ("max_tokens", "max_completion_tokens"):
        value = request.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= MAX_TOKENS):
            return f"{name} must be a whole number from 1 to {MAX_TOKENS}."
    if asked == "prompt":
        return None if isinstance(request.get("prompt"), str) else "prompt must be a text."
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        return "messages must be a list of turns, each with role and content."
    if fault := next((fault for i, message in enumerate(messages) if (fault := _wrong_turn(message, i, sees))), None):
        return fault
    shown = sum(_is_picture(part) for turn in messages for part in _parts(turn))
    if shown > pictures.MOST:
        return f"The conversation has {shown} pictures, {pictures.MOST} at most: start a new one."
    return None


def _wrong_turn(message: Any, number: int, sees: bool) -> str | None:
    if not isinstance(message, Mapping) or not message.keys() <= {"role", "content"}:
        return f"messages[{number}] must have a role and a content, and nothing else."
    if message.get("role") not in _ROLES:
        return f"messages[{number}].role must be one of {', '.join(_ROLES)}."
    for i, part in enumerate(_parts(message)):
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            continue
        if not sees:
            return f"messages[{number}].content must be text: pictures and files are not taken here."
        if not _is_picture(part):
            return f"messages[{number}].content must be text and pictures (image_url with a url, and nothing else)."
        if fault := pictures.url_fault(part[_PICTURE]["url"]):
            return f"The picture in messages[{number}].content[{i}] {fault}."
    return None


def _parts(turn: Mapping[str, Any]) -> list[Any]:
    content = turn.get("content")
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _is_picture(part: Any) -> bool:
    """Return whether a part has the form of a picture, and no field beside."""
    named = isinstance(part, dict) and part.keys() == {"type", _PICTURE} and part["type"] == _PICTURE
    return named and isinstance(part[_PICTURE], dict) and part[_PICTURE].keys() == {"url"}


async def _refuse(status: int, text: str, send: Send) -> None:
    await _answer(status, {"error": {"message": text, "type": "invalid_request_error", "code": status}}, send)


async def _answer(status: int, body: dict[str, Any], send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
