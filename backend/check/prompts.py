"""What a model is asked: prompts as a user types them, and where its chat template takes tools, some that want one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from backend.errors import SpecError
from backend.evaluate import PROMPTS
from backend.models.chat_template import abilities, chat_text


class Prompt(NamedTuple):
    """One of them.

    Attributes:
        words: As a user types it.
        text: As the chat template writes it.
        ids: Its tokens, as the model should read them.
        asked: What an engine is sent.
        tool: The function that is to be called, as its JSON schema; None: none is.
    """

    words: str
    text: str
    ids: list[int]
    asked: Mapping[str, Any]
    tool: Mapping[str, Any] | None = None


def _function(name: str, description: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}

CALLS: dict[str, dict[str, Any]] = {
    "What is the weather like in Paris right now?": _function(
        "get_weather", "Get the current weather in a city.", city=_TEXT | {"description": "The city's name."}
    ),
    "How much is 250 euros in US dollars today?": _function(
        "convert_currency",
        "Convert an amount of money at today's rate.",
        amount=_NUMBER | {"description": "How much to convert."},
        to=_TEXT | {"description": "The currency to convert to, such as USD."},
    ),
    "Find desk lamps in the shop that cost less than 40 euros.": _function(
        "search_products",
        "Search the shop.",
        query=_TEXT | {"description": "What to search for."},
        max_price=_NUMBER | {"description": "The highest price in euros."},
    ),
}
"""Prompts that want a tool, each with the one that is offered."""


def continued(prompt: str) -> str:
    """Write a prompt for a model that only continues text."""
    return f"Question: {prompt}\nAnswer:"


def prompts_of(tokenizer: Any, talks: bool) -> list[Prompt]:
    """Return what a model is asked, the prompts without tools first.

    Args:
        tokenizer: The model's.
        talks: Whether it has a chat template.

    Raises:
        SpecError: Its chat template will not do.
    """
    if not talks:
        return [_continued(tokenizer, words) for words in PROMPTS]
    found = [_chatted(tokenizer, words) for words in PROMPTS]
    if not abilities(tokenizer).tools:
        return found
    return found + [prompt for words, tool in CALLS.items() if (prompt := _calling(tokenizer, words, tool))]


def _continued(tokenizer: Any, words: str) -> Prompt:
    text = continued(words)
    return Prompt(words, text, tokenizer(text)["input_ids"], {"prompt": text})


def _chatted(tokenizer: Any, words: str) -> Prompt:
    turns = [{"role": "user", "content": words}]
    text = chat_text(tokenizer, turns, prompt=True)
    return Prompt(words, text, _tokens(tokenizer, text), {"messages": turns})


def _calling(tokenizer: Any, words: str, tool: Mapping[str, Any]) -> Prompt | None:
    """Return a prompt that wants a tool; None where it cannot be asked as plain text, as its template writes it.

    An engine is sent the text that the template has written: vLLM takes tools only where it was told at its start how
    this model's calls are parsed. It puts tokens before a text by itself, which must not stand there twice.
    """
    try:
        text = chat_text(tokenizer, [{"role": "user", "content": words}], [tool], prompt=True)
    except SpecError:
        return None
    ids = _tokens(tokenizer, text)
    for sent in (text, text.removeprefix(tokenizer.bos_token or "")):
        if tokenizer(sent)["input_ids"] == ids:
            return Prompt(words, text, ids, {"prompt": sent}, tool)
    return None


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
