"""Tool calls in an answer, in any of the ways in which models write them; whether one names a tool and fits it.

Known are JSON objects with name and arguments (Hermes, Qwen, Llama 3, Granite), a name before an object (Mistral,
DeepSeek, gpt-oss, Gemma), tags (Qwen3-Coder, MiniMax, GLM) and Python's calls (Llama 4, LFM2).
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_APART = 60
"""Characters that may stand between a name and the object with its arguments: marks, the word json, a fence."""

_TAGGED = re.compile(
    r"<parameter=(?P<a>\w+)>\s*(?P<b>.*?)\s*</parameter>"
    r"|<parameter name=\"(?P<c>\w+)\">\s*(?P<d>.*?)\s*</parameter>"
    r"|<arg_key>(?P<e>\w+)</arg_key>\s*<arg_value>(?P<f>.*?)</arg_value>",
    re.DOTALL,
)
_QUOTES = re.compile(r"<escape>|<\|\"\|>")
"""Gemma's marks around a text."""

_BARE_KEY = re.compile(r"([{,]\s*)(\w+)(?=\s*:)")

_KINDS: dict[str, tuple[type, ...]] = {"string": (str,), "number": (int, float)}


def calls(answer: str, tool: Mapping[str, Any]) -> bool:
    """Return whether an answer calls a tool with arguments that fit its schema.

    Args:
        answer: Behind its thoughts, with the tokens that mark a call.
        tool: A function as its JSON schema, with parameters that are texts and numbers.
    """
    function = tool["function"]
    return any(_fit(given, function["parameters"]) for given in _arguments(answer, function["name"]))


def _fit(given: Any, schema: Mapping[str, Any]) -> bool:
    known = schema["properties"]
    if not isinstance(given, dict) or not set(schema["required"]) <= given.keys() <= known.keys():
        return False
    return all(isinstance(value, _KINDS[known[name]["type"]]) and value != "" for name, value in given.items())


def _arguments(answer: str, name: str) -> Iterator[Any]:
    """Yield what may be the arguments of a call of a tool, in each way of writing them."""
    for found in _objects(answer):
        function = found.get("function")
        called = function if isinstance(function, dict) else found
        if called.get("name") == name:
            given = next((called[key] for key in ("arguments", "parameters") if key in called), None)
            yield _parsed(given) if isinstance(given, str) else given
    for place in re.finditer(rf"\b{re.escape(name)}\b", answer):
        rest = answer[place.end() :]
        before, opened, _ = rest.partition("{")
        if opened and len(before) <= _APART and '"' not in before:  # else it is a broken object that holds the name
            plain = _QUOTES.sub('"', rest[len(before) :])
            yield next(_objects(plain), None) or next(_objects(_BARE_KEY.sub(r'\1"\2"', plain)), None)
        yield {found[0]: _parsed(found[1]) for found in map(_pair, _TAGGED.finditer(rest))}
        yield _keywords(rest)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text, of those in each other the outermost."""
    at, decoder = text.find("{"), json.JSONDecoder()
    while at >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
            yield found
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)


def _pair(found: re.Match[str]) -> list[str]:
    return [part for part in found.groups() if part is not None]


def _parsed(text: str) -> Any:
    """Return what a text says as JSON; where it says nothing, the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _keywords(rest: str) -> dict[str, Any] | None:
    """Return the keywords that a text begins with behind a function's name, as Python writes them."""
    end = rest.find(")")
    try:
        call = ast.parse(f"f{rest[: end + 1]}", mode="eval").body
        if isinstance(call, ast.Call) and not call.args:
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
    return None
