"""The streaming client: OpenAI's own package against the local server."""

import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ConfigDict, Field

from backend.errors import AppError, JobError, SpecError
from backend.model_folder import has_chat_template
from backend.models.tokens import THINKS, THOUGHT
from backend.options import Frozen
from backend.serve import pictures
from backend.serve.engine import sees
from backend.serve.server import Server
from backend.serve.stops import Stops

if TYPE_CHECKING:
    import openai

PACE = 0.2  # seconds between two looks at an answer that is written
MAX_CHARACTERS = 200_000  # of a whole conversation; more than any context that is served here


MAX_REASON = 300  # characters of a server's own words
_CUT = ("abort", "error")  # reasons for which an answer ends that is none
_STOPPED = "The server stopped while it answered: ask again when the model is ready."

Shown = TypeVar("Shown")


class ChatOptions(Frozen):
    """How an answer is sampled; names are the API's."""

    model_config = ConfigDict(str_strip_whitespace=False)  # an answer may end at a line break

    max_tokens: int = Field(512, ge=1, le=32768, description="Tokens an answer may have at most.")
    temperature: float = Field(0.7, ge=0, le=2, description="0: always the likeliest token. Higher: more varied.")
    top_p: float = Field(0.95, gt=0, le=1, description="Only the likeliest tokens that together have this share.")
    top_k: int | None = Field(None, ge=1, description="Only so many of the likeliest tokens. Empty: as the model says.")
    seed: int | None = Field(None, ge=0, description="The same seed and prompt give the same answer. Empty: random.")
    stop: tuple[str, ...] = Field((), max_length=4, description="The answer ends before any of these texts.")


class Answer(Frozen):
    """An answer so far."""

    text: str = Field(description="What the model says to itself stands between THINKS and THOUGHT.")
    tokens: int = Field(0, description="Of the answer; while it is written the pieces that came.")
    context: int | None = Field(None, description="Tokens of the whole conversation, when the answer is complete.")
    seconds_to_first_token: float | None = None
    tokens_per_second: float | None = Field(None, description="After the first token.")


def stream(server: Server, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> Iterator[Answer]:
    """Ask the server, and return the answer as it grows: closing the iterator stops the generation.

    What cannot be asked is refused at once, before anything is iterated.

    Args:
        server: A ready server.
        messages: `{"role": "system" | "user" | "assistant", "content": …}`, oldest first; a content is text, or a list
            of parts as turn() makes them.
        options: Sampling.

    Raises:
        JobError: The conversation is too long, or the server does not answer.
        SpecError: It holds pictures, and the model reads none, or not so many.
    """
    _refuse(server, messages)
    stops = [text for text in options.stop if text]
    return _stream(server, _request(server, messages, options, stops), stops)


def _stream(server: Server, request: dict[str, Any], stops: Sequence[str]) -> Iterator[Answer]:
    """Ask the server and yield the answer as it grows."""
    import openai

    writing, reason = _Writing(stops), None
    try:
        with _client(server) as client, client.chat.completions.create(stream=True, **request) as chunks:
            for chunk in chunks:
                choice = chunk.choices[0] if chunk.choices else None
                reason = (choice.finish_reason if choice else None) or reason
                if choice and writing.take(choice.delta):
                    yield writing.answer
                if chunk.usage:
                    writing.count(chunk.usage)
        if reason is None or reason in _CUT:  # a server that dies may close its reply as if all had been said
            raise JobError(_STOPPED)
        yield writing.whole()
    except openai.APIStatusError as e:
        raise JobError(_refused(e)) from e
    except openai.APIError as e:
        raise JobError(_STOPPED) from e


class _Writing:
    """An answer that is written, with what the model says to itself before it.

    Args:
        stops: Texts that the answer ends before.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.answer = Answer(text="")
        self._said, self._thoughts = Stops(stops), Stops(stops)
        self._text = ""
        self._pieces = 0
        self._thinking = False
        self._started = time.monotonic()
        self._first: float | None = None

    def take(self, delta: Any) -> bool:
        """Add what came, and return whether that shows."""
        piece = self._said.take(delta.content or "")
        thought = self._thoughts.take(getattr(delta, "reasoning", None) or "")
        thought += self._thoughts.rest() if piece else ""
        if not (thought or piece):
            return False
        if thought and not self._text:
            self._text = THINKS
        self._text += thought
        if piece and self._thinking:
            self._text += THOUGHT
        self._text += piece
        self._thinking = not piece and (self._thinking or bool(thought))
        now = time.monotonic()
        self._first = self._first or now
        self._pieces += 1
        speed = (self._pieces - 1) / (now - self._first) if now > self._first else None
        told = {"seconds_to_first_token": self._first - self._started, "tokens_per_second": speed}
        self.answer = Answer(text=self._text, tokens=self._pieces, **told)
        return True

    def count(self, usage: Any) -> None:
        """Take the numbers of tokens from the server."""
        known = {"tokens": usage.completion_tokens, "context": usage.total_tokens}
        self.answer = self.answer.model_copy(update=known)

    def whole(self) -> Answer:
        """Return it with what was held back, in case it began a text that it ends before."""
        return self.answer.model_copy(update={"text": self._text + self._thoughts.rest() + self._said.rest()})


def _refuse(server: Server, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a conversation that the model cannot read."""
    if sum(len(text) for message in messages for text in _texts(message)) > MAX_CHARACTERS:
        raise JobError(f"The conversation is longer than {MAX_CHARACTERS} characters: start a new one.")
    check_pictures(server.folder, server.base, messages)
    if not (has_chat_template(server.folder) or (server.base and has_chat_template(server.base))):
        raise JobError(
            f"'{server.model}' has no chat template, so it does not know how a conversation looks: choose a model that"
            " was made for chat."
        )


def _request(
    server: Server, messages: Sequence[Mapping[str, Any]], options: ChatOptions, stops: Sequence[str]
) -> dict[str, Any]:
    """Return what the server is asked, as OpenAI's package takes it."""
    request: dict[str, Any] = {"model": server.model, "messages": messages}
    request |= options.model_dump(exclude_none=True, exclude={"top_k", "stop"})
    request["stream_options"] = {"include_usage": True}
    request |= {"stop": stops} if stops else {}
    return request | ({"extra_body": {"top_k": options.top_k}} if options.top_k else {})  # no field of OpenAI's own


def turn(text: str, images: Sequence[Path] = ()) -> dict[str, Any]:
    """Return what a user says, with the pictures that are shown before it.

    Args:
        text: The question.
        images: Files on this machine.

    Raises:
        SpecError: One of them is no picture that is taken.
    """
    if not images:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [*map(pictures.part, images), {"type": "text", "text": text}]}


def check_pictures(folder: Path, base: Path | None, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse pictures for a model that reads none, or more than it is shown at a time.

    Args:
        folder: Of the model, or of an adapter.
        base: Of an adapter: the folder of its base model.
        messages: As stream() takes them.

    Raises:
        SpecError: What to do instead.
    """
    shown = sum(part["type"] != "text" for message in messages for part in _parts(message))
    if shown and not sees(folder, base):
        raise SpecError(f"'{folder.name}' reads no pictures: ask it without one, or choose a model that does.")
    if shown > pictures.MOST:
        raise SpecError(f"The conversation has {shown} pictures, {pictures.MOST} at most: start a new one.")


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(message: Mapping[str, Any]) -> list[str]:
    return [part.get("text", "") for part in _parts(message)]


def paced(answers: Iterator[Shown], seconds: float = PACE) -> Iterator[Shown]:
    """Yield what grows at most once in so many seconds, and the last: for a reader who shows it slower than it comes.

    Args:
        answers: Each holds all that those before it held.
        seconds: Between two, counted from when the one before has been taken.
    """
    shown, waiting = -math.inf, None
    try:
        for waiting in answers:
            if time.monotonic() - shown >= seconds:
                taken, waiting = waiting, None
                yield taken
                shown = time.monotonic()
    except AppError:
        if waiting is not None:
            yield waiting
        raise
    if waiting is not None:
        yield waiting


def _refused(error: "openai.APIStatusError") -> str:
    """Say why a server did not answer, in its own words where it has some, and what to do."""
    body = error.body if isinstance(error.body, dict) else {}
    said = body.get("message") or body.get("detail")
    if error.status_code == 400 and isinstance(said, str):
        reason = f"The server could not answer this: {said.splitlines()[0][:MAX_REASON]}"
        if "chat template" in reason or "picture" in reason:  # which say what to do
            return reason
        return f"{reason} Shorten the conversation, empty the system prompt, or lower max_tokens."
    # vLLM answers 500 in the second before it is found dead
    remedy = "shorten the conversation, or empty the system prompt" if error.status_code < 500 else "ask again"
    return (
        f"The server could not answer this ({error.status_code}): {remedy}; the newest log in servers, in the data"
        " folder, says more."
    )


def _client(server: Server) -> "openai.OpenAI":
    """Return a client for loopback: no proxy leads there, and to read certificates would delay each answer by 20 ms."""

    import openai

    plain = openai.DefaultHttpxClient(verify=False, trust_env=False)
    return openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, timeout=600, http_client=plain)


def usage(server: Server) -> str:
    """Write how other programs on this machine ask a server: for a shell, and for OpenAI's Python package."""
    body = json.dumps({"model": server.model, "messages": [{"role": "user", "content": "Hello"}]})
    return (
        f"curl {server.base_url}/chat/completions -H 'Authorization: Bearer {server.key}' \\\n"
        f"  -H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
        "\n"
        "from openai import OpenAI\n"
        f"client = OpenAI(base_url={server.base_url!r}, api_key={server.key!r})\n"
        "answer = client.chat.completions.create(\n"
        f"    model={server.model!r}, messages=[{{'role': 'user', 'content': 'Hello'}}]\n"
        ")\n"
        "print(answer.choices[0].message.content)"
    )
