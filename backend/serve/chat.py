"""The streaming client: OpenAI's own package against the local server."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import openai
from pydantic import Field

from backend.errors import JobError
from backend.models.loading import has_chat_template
from backend.options import Frozen
from backend.serve.servers import Server

MAX_CHARACTERS = 200_000  # of a whole conversation; more than any context that is served here


class ChatOptions(Frozen):
    """How an answer is sampled; names are the API's."""

    max_tokens: int = Field(512, ge=1, le=32768, description="Tokens an answer may have at the most.")
    temperature: float = Field(0.7, ge=0, le=2, description="0: always the likeliest token. Higher: more varied.")
    top_p: float = Field(0.95, gt=0, le=1, description="Only the likeliest tokens that together have this share.")
    seed: int | None = Field(None, ge=0, description="The same seed and prompt give the same answer. Empty: random.")


class Answer(Frozen):
    """An answer so far."""

    text: str
    tokens: int = Field(0, description="Pieces that came, which are tokens for every server here.")
    seconds_to_first_token: float | None = None
    tokens_per_second: float | None = Field(None, description="After the first token.")


def stream(server: Server, messages: Sequence[dict[str, str]], options: ChatOptions) -> Iterator[Answer]:
    """Ask the server and give the answer as it grows; closing the iterator stops the generation.

    Args:
        server: A ready server.
        messages: `{"role": "system" | "user" | "assistant", "content": …}`, oldest first.
        options: Sampling.

    Raises:
        JobError: The conversation is too long, or the server does not answer.
    """
    if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
        raise JobError(f"The conversation is longer than {MAX_CHARACTERS} characters: start a new one.")
    if not has_chat_template(server.folder):
        raise JobError(
            f"'{server.model}' has no chat template, so it does not know how a talk looks: choose a model that was made"
            " for chat."
        )
    client = openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, timeout=600)
    started, first, count, text = time.monotonic(), None, 0, ""
    request: dict[str, Any] = {"model": server.model, "messages": messages, **options.model_dump(exclude_none=True)}
    try:
        with client.chat.completions.create(stream=True, **request) as chunks:
            for chunk in chunks:
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if not piece:
                    continue
                now = time.monotonic()
                first = first or now
                count, text = count + 1, text + piece
                speed = (count - 1) / (now - first) if now > first else None
                yield Answer(text=text, tokens=count, seconds_to_first_token=first - started, tokens_per_second=speed)
    except openai.APIStatusError as e:
        raise JobError(
            f"The server could not answer this ({e.status_code}): shorten the talk, or empty the system prompt;"
            " server.log in the data folder says more."
        ) from e
    except openai.APIError as e:
        raise JobError("The server stopped while it answered: load the model again.") from e
    if not text:
        yield Answer(text="")
